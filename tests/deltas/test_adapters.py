"""Adapters of PEFT: an exported LoRA and SHiRA give its logits, and so do its files here."""

import json
import os

import pytest
import safetensors.torch
import torch
from helpers import llama
from helpers.small_deltas import trained

import sparse_ft as sft

peft = pytest.importorskip("peft")
from peft import PeftModel, ShiraConfig, SupertuningConfig, get_peft_model  # noqa: E402

TOKENS = next(llama.batches(1))
LINEARS = [
    *(f"model.layers.{i}.self_attn.{n}_proj" for i in range(2) for n in "qkvo"),
    *(f"model.layers.{i}.mlp.{n}_proj" for i in range(2) for n in ("gate", "up", "down")),
]


def base():
    return llama.tiny_llama(layers=2).eval()


def fine_tuned(plan, model=None):
    model = base() if model is None else model
    sft.convert(model, plan)
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
    for tokens in llama.batches(4):
        llama.loss_of(model, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def plan_of(structure, **kwargs):
    names = [f"{name}.weight" for name in LINEARS]
    return sft.select(
        base(), density=0.2, structure=structure, score="random", targets=names, **kwargs
    )


@torch.no_grad()
def logits(model, tokens=TOKENS):
    return model(tokens).logits


WHOLE = {"lm_head.weight": "all", "model.norm.weight": "all"}


@pytest.mark.parametrize("structure", ["rows", "columns"])
def test_an_exported_lora_gives_the_fine_tuned_logits_in_plain_peft(tmp_path, structure):
    plan = plan_of(structure) | {"model.embed_tokens.weight": sft.Rows([3, 4, 9])} | WHOLE
    model = fine_tuned(plan)
    sft.export_lora(model, tmp_path / "lora", base())
    loaded = PeftModel.from_pretrained(base(), tmp_path / "lora").eval()
    assert (logits(loaded) - logits(model)).abs().max() <= 1e-5
    assert (logits(base()) - logits(model)).abs().max() > 1e-2
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded), logits(base()))
    assert (logits(loaded.merge_and_unload()) - logits(model)).abs().max() <= 1e-5


def test_ranks_that_differ_and_names_that_end_alike(tmp_path):
    """A layer called as the end of another's name; each has a rank of its own."""
    plan = {f"{name}.weight": sft.Rows(range(1 + i % 3)) for i, name in enumerate(LINEARS)}
    model = fine_tuned(plan)
    sft.export_lora(sft.diff(base(), sft.revert(model)), tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 3 and set(config["rank_pattern"].values()) == {
        1,
        2,
    }
    loaded = PeftModel.from_pretrained(base(), tmp_path / "lora").eval()
    assert (logits(loaded) - logits(model)).abs().max() <= 1e-5


@pytest.mark.parametrize("structure", ["rows", "columns"])
def test_conv1d_is_stored_the_other_way_round(tmp_path, structure):
    transformers = pytest.importorskip("transformers")

    def gpt2():
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=32, n_positions=16, n_embd=24, n_layer=2, n_head=2
        )
        return transformers.GPT2LMHeadModel(config).eval()

    names = [
        n for n, _ in gpt2().named_parameters() if n.endswith(("c_attn.weight", "c_proj.weight"))
    ]
    plan = sft.select(gpt2(), density=0.2, structure=structure, score="random", targets=names)
    model = fine_tuned(plan, gpt2())
    sft.export_lora(model, tmp_path / "lora", gpt2())
    loaded = PeftModel.from_pretrained(gpt2(), tmp_path / "lora").eval()
    assert (logits(loaded) - logits(model)).abs().max() <= 1e-5
    assert (logits(gpt2()) - logits(model)).abs().max() > 1e-3


@pytest.mark.parametrize("structure", ["entries", "blocks", "rows", "columns"])
def test_an_exported_shira_gives_the_fine_tuned_logits_in_plain_peft(tmp_path, structure):
    names = [f"{name}.weight" for name in LINEARS]
    plan = sft.select(
        base(), density=0.08, structure=structure, score="random", targets=names, block_size=(5, 7)
    )
    model = fine_tuned(plan | WHOLE)
    sft.export_shira(model, tmp_path / "shira", base())
    loaded = PeftModel.from_pretrained(base(), tmp_path / "shira").eval()
    assert (logits(loaded) - logits(model)).abs().max() <= 1e-5
    again = sft.load_shira(tmp_path / "shira", base())
    assert (logits(sft.apply(base(), again)) - logits(model)).abs().max() <= 1e-5


def peft_file(config, folder):
    """A file that PEFT saves, of an adapter with random numbers in it, and the adapter's logits."""
    model = get_peft_model(base(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
    model.eval().save_pretrained(folder)
    return logits(model)


def test_a_shira_file_of_peft_gives_its_logits(tmp_path):
    config = ShiraConfig(r=2, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
    wanted = peft_file(config, tmp_path)
    delta = sft.load_shira(tmp_path, base())
    model = sft.apply(base(), delta)
    assert (logits(model) - wanted).abs().max() <= 1e-5
    assert (logits(base()) - wanted).abs().max() > 1e-2
    assert delta.has_origin and len(delta) == 5
    assert torch.equal(logits(sft.remove(model)), logits(base()))


@pytest.mark.parametrize(
    "settings",
    [
        {"sparsity": 0.9},
        {"sparsity": 0.9, "select_top": False, "save_precomputed_indices": False},
        {"sparsity": 0.95, "r": 2, "lora_alpha": 3.0},
    ],
    ids=["entries", "without positions", "with a lora"],
)
def test_a_super_tuning_file_of_peft_gives_its_logits(tmp_path, settings):
    config = SupertuningConfig(
        target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"], **settings
    )
    wanted = peft_file(config, tmp_path)
    model = sft.apply(base(), sft.load_supertuning(tmp_path, base()))
    assert (logits(model) - wanted).abs().max() <= 1e-5
    assert (logits(base()) - wanted).abs().max() > 1e-2


def test_an_adapter_becomes_a_delta_file_a_third_of_its_size(tmp_path):
    peft_file(ShiraConfig(r=2, target_modules=["q_proj", "down_proj"]), tmp_path)
    delta = sft.load_shira(tmp_path, base())
    sft.save_delta(delta, tmp_path / "delta")
    loaded = sft.load_delta(tmp_path / "delta")
    assert torch.equal(logits(sft.apply(base(), loaded)), logits(sft.apply(base(), delta)))
    tensors = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    theirs = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert theirs >= 12 * delta.entries


def test_what_is_no_lora_or_shira_is_named(tmp_path):
    model = trained()
    with pytest.raises(ValueError, match="base: .*nothing tells.*'embed.weight'; give base="):
        sft.export_lora(model, tmp_path)
    known = fine_tuned({"model.layers.0.mlp.up_proj.weight": sft.Entries([1, 2])})
    with pytest.raises(
        ValueError, match="source: .*up_proj.weight' trained entries.*sft.export_shira"
    ):
        sft.export_lora(known, tmp_path, base())
    norm = fine_tuned({"model.norm.weight": sft.Columns([1, 2])})
    for export in (sft.export_lora, sft.export_shira):
        with pytest.raises(ValueError, match="source: 'model.norm.weight' is no weight of"):
            export(norm, tmp_path, base())
    heavy = fine_tuned({"model.layers.0.mlp.up_proj.weight": sft.Rows(range(44))})
    with pytest.raises(ValueError, match="source: SHiRA wants 1088 entries of .*which has 1056"):
        sft.export_shira(heavy, tmp_path, base())
    with pytest.raises(ValueError, match="model: it is not the base"):
        sft.export_lora(heavy, tmp_path, llama.tiny_llama(layers=2, seed=5))
    assert not os.listdir(tmp_path)


def test_foreign_and_broken_adapters_are_named(tmp_path):
    config = ShiraConfig(r=1, target_modules=["q_proj"])
    peft_file(config, tmp_path)
    with pytest.raises(
        ValueError, match="path: .* is an adapter of kind 'SHIRA', expected 'SUPERT"
    ):
        sft.load_supertuning(tmp_path, base())
    with pytest.raises(OSError, match="path: No such file.*adapter_config.json"):
        sft.load_shira(tmp_path / "none", base())
    with pytest.raises(KeyError, match="delta: the model has no tensor 'model.layers.0"):
        sft.load_shira(tmp_path, torch.nn.Linear(2, 2))
    path = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    key = next(key for key in tensors if key.endswith("shira_indices"))
    for change, message in (
        (lambda index: index + 100, "columns that"),
        (lambda index: index[:1], "does not say where"),
        (lambda index: index[:, 1:].contiguous(), "positions in"),
    ):
        broken = tensors | {key: change(tensors[key]).contiguous()}
        safetensors.torch.save_file(broken, path)
        with pytest.raises(ValueError, match=f"path: .*{message}"):
            sft.load_shira(tmp_path, base())
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(ValueError, match="path: .* is no adapter of PEFT"):
        sft.load_shira(tmp_path, base())


@pytest.mark.parametrize("export", [sft.export_lora, sft.export_shira])
@pytest.mark.parametrize("what", [sft.Rows([3, 4]), "all"], ids=["rows", "all"])
@pytest.mark.parametrize("source", ["model", "diff", "file"])
def test_what_a_head_shares_is_no_adapter_of_the_embedding(tmp_path, export, what, source):
    def tied():
        model = base()
        model.lm_head.weight = model.model.embed_tokens.weight
        return model

    plan = {"model.embed_tokens.weight": what, f"{LINEARS[0]}.weight": sft.Rows([1])}
    model = fine_tuned(plan, tied())
    given = sft.diff(tied(), model) if source == "diff" else model
    if source == "file":
        sft.save_delta(model, tmp_path / "delta")
        given = sft.load_delta(tmp_path / "delta")
    with pytest.raises(ValueError, match="source: 'model.embed_tokens.weight' is shared by"):
        export(given, tmp_path / "adapter", base=tied())
    if source == "diff":
        with pytest.raises(ValueError, match="source: 'model.embed_tokens.weight' is shared by"):
            export(given, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
