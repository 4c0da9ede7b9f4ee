"""What a selective adapter cannot be, or cannot live beside, is refused by name."""

import dataclasses

import pytest
import torch
from helpers import llama

import sparse_ft as sft

peft = pytest.importorskip("peft")

from helpers.adapters import adapted, config, logits_of, train, two_adapters  # noqa: E402  # fmt: skip

from sparse_ft.peft import SelectiveConfig, SelectiveLayer  # noqa: E402

STEPS = 4
# transformers' and PEFT's own, about each other
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def test_lora_first_then_convert_trains_both_and_saves_both(tmp_path):
    def build():
        torch.manual_seed(0)
        lora = peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
        return peft.get_peft_model(llama.tiny_llama(), lora)

    model = build()
    name = "base_model.model.model.layers.0.mlp.up_proj.weight"
    adapters = {key: "all" for key, _ in model.named_parameters() if "lora" in key}
    sft.convert(model, {name: sft.Rows([1]), **adapters})
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    train(model, STEPS)
    assert all(not torch.equal(model.get_parameter(n), old) for n, old in before.items())
    torch.save(model.state_dict(), tmp_path / "both.pt")
    other = build()
    sft.load(other, torch.load(tmp_path / "both.pt"))
    assert torch.equal(logits_of(other), logits_of(model))


def lora():
    return peft.LoraConfig(target_modules=["q_proj"], r=2)


@pytest.mark.filterwarnings("ignore")
def test_lora_beside_a_selective_adapter_is_refused_by_name():
    model = adapted()
    before, names = logits_of(model), {name for name, _ in model.named_parameters()}
    with pytest.raises(ValueError, match="SELECTIVE.*LORA"):
        model.add_adapter("beside", lora())
    with pytest.raises(ValueError, match="LoraConfig: .*selective adapters.*sft.convert"):
        peft.get_peft_model(model, lora())
    assert {name for name, _ in model.named_parameters()} == names
    assert torch.equal(logits_of(model), before) and list(model.peft_config) == ["default"]
    plain = llama.tiny_llama()
    plain.add_adapter(config(), "selective")
    with pytest.raises(ValueError, match="LoraConfig: .*selective adapters.*sft.convert"):
        plain.add_adapter(lora(), "beside")
    assert list(plain.peft_config) == ["selective"]
    with pytest.raises(ValueError, match="(?i)selective"):
        peft.get_peft_model(llama.tiny_llama(), config(), mixed=True)


@pytest.mark.filterwarnings("ignore")
def test_a_selective_adapter_beside_lora_is_refused_by_name():
    with pytest.raises(ValueError, match="q_proj: it has an adapter of another method.*lora.*sft"):
        peft.get_peft_model(peft.get_peft_model(llama.tiny_llama(), lora()), config())
    plain = llama.tiny_llama()
    plain.add_adapter(lora(), "beside")
    with pytest.raises(ValueError, match="q_proj: it has an adapter of another method"):
        plain.add_adapter(config(), "selective")
    assert list(plain.peft_config) == ["beside"]


@pytest.mark.filterwarnings("ignore")
def test_peft_after_convert_is_refused_with_the_way_out():
    """PEFT would freeze the selection."""
    name = "model.layers.0.mlp.up_proj.weight"
    model = llama.tiny_llama()
    sft.convert(model, {name: sft.Rows([1])})
    kept = {n: (p.requires_grad, p.detach().clone()) for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match="sft.revert.*get_peft_model.*sft.convert"):
        peft.get_peft_model(model, lora())
    for n, p in model.named_parameters():
        assert p.requires_grad == kept[n][0] and torch.equal(p, kept[n][1])
    wrapped = peft.get_peft_model(sft.revert(model), lora())
    adapters = {key: "all" for key, p in wrapped.named_parameters() if p.requires_grad}
    sft.convert(wrapped, {f"base_model.model.{name}": sft.Rows([1]), **adapters})
    before = {n: p.detach().clone() for n, p in wrapped.named_parameters() if p.requires_grad}
    train(wrapped, STEPS)
    assert all(not torch.equal(wrapped.get_parameter(n), old) for n, old in before.items())


def test_a_converted_model_is_refused():
    model = llama.tiny_llama()
    sft.convert(model, {"model.layers.0.self_attn.q_proj.weight": sft.Rows([1])})
    with pytest.raises(ValueError, match="sft.revert.*SelectiveConfig"):
        peft.get_peft_model(model, config())
    model = adapted()
    with pytest.raises(ValueError, match="selective already"):
        sft.convert(model, {"base_model.model.lm_head.weight": sft.Rows([1])})


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"target_modules": ["embed_tokens"]}, "embed_tokens: .*not for Embedding"),
        ({"target_modules": ["nothing"]}, "target_modules: .*'nothing'.* matches no module"),
        ({"density": 1.5}, "density"),
        ({"structure": "diagonal"}, "structure"),
        ({"plan": {"a.bias": sft.Rows([1])}}, "'a.bias' is no weight"),
        ({"plan": {"a.weight": "all"}}, r"'a.weight' is to train whole.*modules_to_save=\['a'\]"),
        ({"plan": {"a.weight": sft.Rows([1])}}, "the model has no module 'a'"),
        ({"plan": {"lm_head.weight": sft.Rows([99])}}, "row 99 is out of range"),
        ({"plan": {"a.weight": sft.Rows([1])}, "recipe": len}, "recipe: there is a plan"),
        ({"recipe": "lifd"}, "recipe: there is no 'lifd'"),
    ],
)
@pytest.mark.filterwarnings("ignore:Model has")
def test_what_cannot_be_is_named_and_the_model_is_as_it_was(wrong, message):
    model = llama.tiny_llama()
    make = SelectiveConfig if wrong.keys() & {"plan", "recipe"} else config
    with pytest.raises((ValueError, TypeError, IndexError), match=message):
        peft.get_peft_model(model, make(**wrong))
    assert not any(isinstance(module, SelectiveLayer) for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_tied_weights_are_refused_by_name():
    base = llama.tiny_llama()
    base.lm_head.weight = base.model.embed_tokens.weight
    with pytest.raises(ValueError, match="lm_head: its weight is shared by model.embed_tokens"):
        peft.get_peft_model(base, SelectiveConfig(plan={"lm_head.weight": sft.Rows([1])}))


def test_a_config_from_a_file_without_its_entries_says_so(tmp_path):
    adapted().save_pretrained(tmp_path)
    fresh = peft.PeftConfig.from_pretrained(tmp_path)
    model = peft.get_peft_model(llama.tiny_llama(), fresh)
    with pytest.raises(RuntimeError, match="made for the entries in a file.*from_pretrained"):
        logits_of(model)


def test_entries_of_another_choice_are_refused(tmp_path):
    adapted(score="random", seed=1).save_pretrained(tmp_path)
    model = adapted()
    before = logits_of(model)
    with pytest.raises(RuntimeError, match="another selection.*delete"):
        model.load_adapter(tmp_path, "default")
    assert torch.equal(logits_of(model), before)


def test_a_batch_of_several_adapters_is_refused():
    model = two_adapters()
    tokens = next(llama.batches(1))
    with pytest.raises(ValueError, match="adapter_names: .*one by one"):
        model(tokens, adapter_names=["default", "other", "default", "other"])


@pytest.mark.parametrize(
    "beside",
    [
        {"density": 0.1},
        {"structure": "rows"},
        {"score": "magnitude"},
        {"choice": {"cap": 0.5}},
        {"target_modules": ["v_proj"]},
        {"exclude_modules": ["up_proj"]},
    ],
    ids=lambda beside: next(iter(beside)),
)
def test_what_a_plan_would_overrule_is_refused(beside):
    plan = {"model.layers.0.mlp.up_proj.weight": sft.Rows([1])}
    for way in ({"plan": plan}, {"recipe": lambda model: plan}):
        with pytest.raises(ValueError, match=f"{next(iter(beside))}: there is a {next(iter(way))}"):
            SelectiveConfig(**way, **beside)


def test_the_config_of_a_plan_can_be_copied_after_its_use():
    made = SelectiveConfig(plan={"model.layers.0.mlp.up_proj.weight": sft.Rows([1])})
    peft.get_peft_model(llama.tiny_llama(), made)
    assert dataclasses.replace(made).target_modules == {"model.layers.0.mlp.up_proj"}


def test_a_delta_of_an_adapter_is_made_of_what_it_is_merged_into():
    model = adapted()
    train(model, STEPS)
    with pytest.raises(
        ValueError, match="it is PEFT's; .* sft.diff\\(base, model.merge_and_unload"
    ):
        sft.Delta.of(model)
    expected = logits_of(model)
    base = llama.tiny_llama()
    delta = sft.diff(base, model.merge_and_unload())
    assert torch.equal(logits_of(sft.apply(base, delta)), expected)
