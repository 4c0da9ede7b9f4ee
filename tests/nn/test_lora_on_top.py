"""PEFT's LoRA over a converted model: both train, and merging after `revert` keeps both."""

import warnings

import pytest
import torch
from torch import nn

import sparse_ft as sft

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.usefixtures("made_on_device")


@pytest.mark.filterwarnings("ignore:model. it has adapters")
def test_lora_wraps_trains_and_merges_after_revert():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    model = peft.get_peft_model(
        base, peft.LoraConfig(target_modules=["0", "2"], r=2, init_lora_weights=False)
    )
    adapters = {name: "all" for name, p in model.named_parameters() if p.requires_grad}
    below = "base_model.model.{}.base_layer.weight"
    plan = {below.format(0): sft.Columns([1, 5]), below.format(2): sft.Entries([0, 7, 30])}
    sft.convert(model, plan | adapters)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.01, fused=True
    )
    x, before = torch.randn(16, 8), {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert {n.rsplit(".", 1)[-1] for n in moved} >= {"values", "weight"}
    out = model(x)
    sft.revert(model)
    torch.testing.assert_close(model(x), out)
    torch.testing.assert_close(model.merge_and_unload()(x), out, atol=1e-5, rtol=1e-5)


PLAN = {"0.weight": sft.Columns([1, 5]), "2.weight": sft.Entries([0, 7, 30])}


def converted():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    sft.convert(base, PLAN)
    return base


def step(model, optimizer):
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("make", [torch.optim.AdamW, sft.SelectiveAdamW])
def test_a_selection_that_peft_froze_is_named_at_the_first_step(make):
    """As PEFT freezes the parts of a model that it wraps, where a converted one is among them."""
    model = converted().requires_grad_(False)
    model[2].bias.requires_grad_(True)
    optimizer = make([p for p in model.parameters() if p.requires_grad], lr=0.01)
    with pytest.warns(
        UserWarning, match="0.weight, 2.weight: selected, but frozen.*get_peft_model.*sft.load"
    ):
        step(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(model, optimizer)


def test_a_part_that_is_frozen_on_purpose_and_another_model_are_no_news():
    model, frozen = converted(), converted().requires_grad_(False)
    model[0].values.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01))
    assert not any(p.requires_grad for p in frozen.parameters())


def test_converting_a_model_with_adapters_says_what_peft_will_not_save(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=9,
    )

    def build():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
        return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2))

    model, name = build(), "base_model.model.model.layers.0.mlp.up_proj.weight"
    adapters = {key: "all" for key, _ in model.named_parameters() if "lora" in key}
    with pytest.warns(
        UserWarning,
        match=r"save_pretrained saves the adapters and not the selected entries.*sft\.load",
    ):
        sft.convert(model, {name: sft.Rows([1]), **adapters})
    with torch.no_grad():
        model.get_submodule(name.removesuffix(".weight")).values.add_(1)
    torch.save(model.state_dict(), tmp_path / "both.pt")
    other = build()
    with pytest.warns(UserWarning, match="adapters"):
        sft.load(other, torch.load(tmp_path / "both.pt"))
    assert torch.equal(other.state_dict()[name], model.state_dict()[name])
