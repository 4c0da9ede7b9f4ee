"""Selective adapters through PEFT: every call of its API, beside sft.convert and the base model."""

import copy
import functools
import json
import subprocess
import sys

import pytest
import torch
from helpers import llama
from torch import nn

import sparse_ft as sft

peft = pytest.importorskip("peft")

from helpers.adapters import (  # noqa: E402
    TARGETS,
    adapted,
    assert_is_base,
    config,
    logits_of,
    optimizer_of,
    train,
    two_adapters,
    values_of,
)  # fmt: skip

from sparse_ft.peft import SelectiveConfig, SelectiveLayer  # noqa: E402

STEPS = 4
STRUCTURES = ["rows", "columns", "blocks", "entries"]
# transformers' and PEFT's own, about each other
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [torch.optim.AdamW, sft.SelectiveAdamW], ids=lambda m: m.__name__)
@pytest.mark.parametrize("structure", STRUCTURES)
# Not what a finalizer of another test's object has to say, whenever it is called.
@pytest.mark.filterwarnings("error::UserWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_losses_are_those_of_convert_bit_for_bit(structure, make, dtype):
    base = llama.tiny_llama(dtype)
    patterns = [f"*{target}.weight" for target in TARGETS]
    plan = sft.select(
        base, density=0.3, structure=structure, score="magnitude", targets=patterns,
        block_size=(10, 7),
    )  # fmt: skip
    sft.convert(base, plan)
    ours = adapted(structure, dtype)
    assert train(ours, STEPS, make) == train(base, STEPS, make)
    assert torch.equal(logits_of(ours), logits_of(base))
    trained = sft.revert(base).state_dict()
    merged = ours.merge_and_unload().state_dict()
    assert merged.keys() == trained.keys()
    assert all(torch.equal(merged[name], trained[name]) for name in trained)


@pytest.mark.parametrize("how", ["plan", "recipe"])
def test_a_plan_or_a_recipe_says_what_trains(how):
    plan = sft.Plan({"model.layers.0.self_attn.q_proj.weight": sft.Columns([1, 5])})
    given = {"plan": plan} if how == "plan" else {"recipe": lambda model: plan}
    model = peft.get_peft_model(llama.tiny_llama(), SelectiveConfig(**given))
    layers = [m for m in model.modules() if isinstance(m, SelectiveLayer)]
    assert [layer.label for layer in layers] == ["model.layers.0.self_attn.q_proj"]
    assert layers[0].selective_slot["default"].selection == sft.Columns([1, 5])


def test_without_targets_every_linear_layer_but_the_head_is_chosen_from():
    for targets in (None, "all-linear"):
        model = peft.get_peft_model(llama.tiny_llama(), config(target_modules=targets))
        labels = {m.label for m in model.modules() if isinstance(m, SelectiveLayer)}
        assert len(labels) == 7 and not any("lm_head" in label for label in labels)
    excluded = config(target_modules=None, exclude_modules=["q_proj"])
    model = peft.get_peft_model(llama.tiny_llama(), excluded)
    assert sum(isinstance(m, SelectiveLayer) for m in model.modules()) == 6


def test_batches_rank_by_gradient_as_select_does():
    examples = [{"input_ids": t, "labels": t} for t in llama.batches(2)]
    model = peft.get_peft_model(llama.tiny_llama(), config(score=None, batches=examples))
    plan = sft.select(
        llama.tiny_llama(), density=0.3, batches=examples, targets=[f"*{t}.weight" for t in TARGETS]
    )
    for layer in (m for m in model.modules() if isinstance(m, SelectiveLayer)):
        assert layer.selective_slot["default"].selection == plan[f"{layer.label}.weight"]


def test_whatever_select_takes_may_be_asked_for():
    patterns = [f"*{target}.weight" for target in TARGETS]
    asked = {"budget": sft.LikeLora(2), "scope": "global", "cap": 0.5}
    model = peft.get_peft_model(
        llama.tiny_llama(),
        SelectiveConfig(score="magnitude", target_modules=list(TARGETS), choice=asked),
    )
    plan = sft.select(llama.tiny_llama(), score="magnitude", targets=patterns, **asked)
    layers = {m.label: m for m in model.modules() if isinstance(m, SelectiveLayer)}
    assert {f"{label}.weight" for label in layers} == set(plan)
    for label, layer in layers.items():
        assert layer.selective_slot["default"].selection == plan[f"{label}.weight"]
    with pytest.raises(ValueError, match="choice: targets of an adapter are its target_modules"):
        SelectiveConfig(choice={"targets": "*"})


def test_an_adapter_of_a_larger_model_is_refused_by_name(tmp_path):
    adapted().save_pretrained(tmp_path)
    transformers = pytest.importorskip("transformers")
    sizes = {**llama.tiny_llama().config.to_dict(), "hidden_size": 48}
    other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    with pytest.raises(
        ValueError, match=r"down_proj: its weight is \[48, 44\].*made for \[24, 44\]"
    ):
        peft.PeftModel.from_pretrained(other, tmp_path)


def test_print_trainable_parameters_counts_the_selected_entries(capsys):
    model = adapted()
    model.print_trainable_parameters()
    count = sum(values.numel() for values in values_of(model).values())
    assert f"trainable params: {count:,d} ||" in capsys.readouterr().out
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(values_of(model))
    assert sft.summary(model).trainable == count


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_save_and_load_give_the_same_model_and_train_on(structure, low_cpu_mem_usage, tmp_path):
    model = adapted(structure, torch.bfloat16)
    train(model, STEPS)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").exists()
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "SELECTIVE" and "plan" not in saved and "batches" not in saved
    loaded = peft.PeftModel.from_pretrained(
        llama.tiny_llama(torch.bfloat16),
        tmp_path,
        is_trainable=True,
        low_cpu_mem_usage=low_cpu_mem_usage,
    )
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert not any(key.endswith(".base") for key in peft.get_peft_model_state_dict(loaded))
    want, got = values_of(model), values_of(loaded)
    assert want.keys() == got.keys() and all(torch.equal(got[key], want[key]) for key in want)
    assert all(values.dtype == torch.float32 for values in got.values())
    assert train(loaded, STEPS) == train(model, STEPS)
    with loaded.disable_adapter():
        assert_is_base(loaded, torch.bfloat16)


def test_a_file_loads_without_training_by_default(tmp_path):
    adapted().save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(llama.tiny_llama(), tmp_path)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_several_adapters_share_one_base():
    model = two_adapters()
    first = adapted()
    train(first, STEPS)
    other = adapted("rows", density=0.3)
    train(other, STEPS)
    assert torch.equal(logits_of(model), logits_of(other))
    model.set_adapter("default")
    assert torch.equal(logits_of(model), logits_of(first))
    with model.disable_adapter():
        assert_is_base(model)
        assert torch.equal(logits_of(model), logits_of(llama.tiny_llama()))
    assert torch.equal(logits_of(model), logits_of(first))


def test_the_second_adapter_is_chosen_on_the_base_not_on_the_first():
    model = adapted("entries")
    train(model, STEPS)
    model.add_adapter("same", config("entries"))
    for layer in (m for m in model.modules() if isinstance(m, SelectiveLayer)):
        slots = layer.selective_slot
        assert slots["same"].selection == slots["default"].selection


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_1000_set_adapter_calls_leave_the_base_bit_identical(dtype):
    model = adapted("entries", dtype)
    train(model, STEPS)
    model.add_adapter("other", config("blocks", 0.3))
    model.set_adapter("other")
    train(model, STEPS)
    with model.disable_adapter():
        assert_is_base(model, dtype)
    before = logits_of(model)
    for _ in range(500):
        model.set_adapter("default")
        model.set_adapter("other")
    assert torch.equal(logits_of(model), before)
    with model.disable_adapter():
        assert_is_base(model, dtype)


def test_every_adapter_is_saved_and_loaded(tmp_path):
    model = two_adapters()
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(llama.tiny_llama(), tmp_path)
    loaded.load_adapter(tmp_path / "other", "other")
    for name in ("default", "other"):
        model.set_adapter(name)
        loaded.set_adapter(name)
        assert torch.equal(logits_of(loaded), logits_of(model)), name
    with loaded.disable_adapter():
        assert_is_base(loaded)


@pytest.mark.filterwarnings("ignore:Adapter other was active")
def test_delete_adapter_leaves_the_others_and_the_base():
    model = two_adapters()
    first = adapted()
    train(first, STEPS)
    model.delete_adapter("other")
    assert model.active_adapters == ["default"]
    assert torch.equal(logits_of(model), logits_of(first))
    model.delete_adapter("default")
    assert_is_base(model)


def test_two_at_once_are_refused_and_change_nothing():
    model = two_adapters()
    before = logits_of(model)
    with pytest.raises(ValueError, match="q_proj: default, other: .*one of them is active"):
        model.base_model.set_adapter(["default", "other"])
    assert model.active_adapters == ["other"] and torch.equal(logits_of(model), before)


def test_generate_speaks_with_the_adapter():
    model = adapted(density=0.6)
    train(model, 30)
    prompt = next(llama.batches(1))[:, :4]
    generate = functools.partial(
        model.generate, prompt, max_new_tokens=5, do_sample=False, use_cache=False
    )
    merged = copy.deepcopy(model).merge_and_unload()
    want = merged.generate(prompt, max_new_tokens=5, do_sample=False, use_cache=False)
    assert torch.equal(generate(), want)
    with model.disable_adapter():
        base = llama.tiny_llama().generate(
            prompt, max_new_tokens=5, do_sample=False, use_cache=False
        )
        assert torch.equal(generate(), base)
    assert not torch.equal(base, want)


def test_transformers_own_adapters(tmp_path):
    model = adapted("blocks", torch.bfloat16)
    train(model, STEPS)
    model.save_pretrained(tmp_path / "peft")
    plain = llama.tiny_llama(torch.bfloat16)
    plain.load_adapter(str(tmp_path / "peft"), is_trainable=True)
    assert torch.equal(logits_of(plain), logits_of(model))
    want = values_of(model)
    for name, values in values_of(plain).items():
        assert torch.equal(values, want[f"base_model.model.{name}"]), name
    plain.disable_adapters()
    assert torch.equal(logits_of(plain), logits_of(llama.tiny_llama(torch.bfloat16)))
    plain.enable_adapters()
    plain.add_adapter(config("rows"), "rows")
    plain.set_adapter("rows")
    train(plain, STEPS)
    plain.save_pretrained(tmp_path / "own")
    rows = logits_of(plain)
    plain.set_adapter("default")
    assert torch.equal(logits_of(plain), logits_of(model))
    loaded = peft.PeftModel.from_pretrained(llama.tiny_llama(torch.bfloat16), tmp_path / "own")
    assert torch.equal(logits_of(loaded), rows)
    plain.set_adapter("rows")
    plain.delete_adapter(["default", "rows"])
    assert_is_base(plain, torch.bfloat16)


def test_conv1d_of_gpt2():
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 24, "n_layer": 1, "n_head": 2, "vocab_size": 32, "n_positions": 16}

    def build():
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()

    plan = sft.select(build(), density=0.2, score="magnitude", targets="*c_attn.weight")
    converted = build()
    sft.convert(converted, plan)
    model = peft.get_peft_model(build(), SelectiveConfig(plan=plan))
    assert train(model, STEPS) == train(converted, STEPS)


def test_modules_to_save_train_beside():
    model = adapted(modules_to_save=["lm_head"])
    before = (
        model.get_parameter("base_model.model.lm_head.modules_to_save.default.weight")
        .detach()
        .clone()
    )
    train(model, STEPS)
    after = model.get_parameter("base_model.model.lm_head.modules_to_save.default.weight")
    assert not torch.equal(before, after)


def test_hooks_on_the_layer_see_its_calls():
    seen = []
    base = llama.tiny_llama()
    layer = base.model.layers[0].self_attn.q_proj
    layer.register_forward_hook(lambda *_: seen.append(1))
    model = peft.get_peft_model(base, config())
    got, want = train(model, STEPS), train(adapted(), STEPS)
    assert len(seen) == STEPS and got == pytest.approx(want, rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_one_config_for_two_models():
    shared = config()
    first = peft.get_peft_model(llama.tiny_llama(), shared)
    second = peft.get_peft_model(llama.tiny_llama(seed=3), shared)
    fresh = peft.get_peft_model(llama.tiny_llama(seed=3), config())
    train(first, STEPS)
    assert train(second, STEPS) == train(fresh, STEPS)


ELSEWHERE = """
import sys, torch
from helpers import llama
from peft import PeftModel
import sparse_ft.peft
model = PeftModel.from_pretrained(llama.tiny_llama(), sys.argv[1])
with torch.no_grad():
    torch.save(model(next(llama.batches(1, seed=9))).logits, sys.argv[2])
"""


def test_three_lines_train_save_and_load_in_another_process(tmp_path):
    model = peft.get_peft_model(llama.tiny_llama(), config())
    train(model, STEPS)
    model.save_pretrained(tmp_path / "adapter")
    command = [sys.executable, "-c", ELSEWHERE, tmp_path / "adapter", tmp_path / "logits.pt"]
    tests = llama.__file__.rpartition("/helpers/")[0]
    subprocess.run(command, check=True, timeout=300, cwd=tests)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits_of(model))


def test_a_chain_of_two_layers_without_transformers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    model = peft.get_peft_model(net, SelectiveConfig(density=0.5, score="random"))
    optimizer = optimizer_of(model)
    before = values_of(model)
    model(torch.randn(5, 8)).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(v, before[n]) for n, v in values_of(model).items())
