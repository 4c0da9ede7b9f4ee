"""Gated MLPs that use a part of their channels in each batch: approximate, and labelled so."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers.architectures import build, double
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sparse_ft as sft
from sparse_ft.lean_modules import is_lean
from sparse_ft.reparametrised import SalientMap, put

pytestmark = pytest.mark.usefixtures("made_on_device")

HIDDEN, CHANNELS = 16, 40
NAME = "mlp"


class MLP(nn.Module):
    """Llama's."""

    def __init__(self, bias=True):
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN, CHANNELS, bias)
        self.up_proj = nn.Linear(HIDDEN, CHANNELS, bias)
        self.down_proj = nn.Linear(CHANNELS, HIDDEN, bias)
        self.act_fn = nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def model_with(bias=True, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.ModuleDict({NAME: MLP(bias)}).to(dtype).requires_grad_(False).train()


def tokens(dtype=torch.float64, number=30):
    return torch.randn(2, number // 2, HIDDEN, dtype=dtype, requires_grad=True)


def dense(mlp, x, share):
    """With the channels that add most to the batch's outputs, the others zero."""
    product = F.silu(mlp.gate_proj(x)) * mlp.up_proj(x)
    added = (product * mlp.down_proj.weight.norm(dim=0)).flatten(0, 1)
    parts = added.square() / added.square().sum(1, keepdim=True)
    largest = parts.sum(0).topk(round(share * CHANNELS)).indices
    mask = torch.zeros(CHANNELS, dtype=x.dtype).index_fill(0, largest, 1)
    return mlp.down_proj(product * mask)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_forward_and_backward_have_the_chosen_channels_alone(share, bias):
    model, x = model_with(bias), tokens()
    plain = copy.deepcopy(model)
    sft.lean(model, contextual=sft.Contextual(share, every=1))
    got, want = model[NAME](x), dense(plain[NAME], x, share)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    grad = torch.randn_like(got)
    ours, theirs = (torch.autograd.grad(each, x, grad)[0] for each in (got, want))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    if share == 1:
        torch.testing.assert_close(got, plain[NAME](x), atol=1e-12, rtol=0)


def test_a_few_tokens_find_most_of_what_all_find():
    model = model_with(bias=False)
    plain = copy.deepcopy(model)
    # Tokens that are alike, as those of a text are, and one that is a thousand times as large.
    x = torch.randn(HIDDEN, dtype=torch.float64) + 0.7 * tokens(number=160).detach()
    x[0, 0] *= 1000
    exact = plain[NAME](x)[:, 1:]
    errors = []
    for every in (1, 8):
        sft.lean(model, contextual=sft.Contextual(0.5, every))
        errors.append((model[NAME](x)[:, 1:] - exact).norm() / exact.norm())
    by_chance = []
    for _ in range(20):
        mask = torch.zeros(CHANNELS, dtype=torch.float64)
        mask[torch.randperm(CHANNELS)[: CHANNELS // 2]] = 1
        mlp = plain[NAME]
        product = F.silu(mlp.gate_proj(x)) * mlp.up_proj(x)
        there = mlp.down_proj(product * mask)[:, 1:]
        by_chance.append((there - exact).norm() / exact.norm())
    assert errors[1] < 1.3 * errors[0] < 0.8 * min(by_chance)


def test_evaluation_is_exact():
    model, x = model_with(), tokens()
    plain = copy.deepcopy(model)
    sft.lean(plain)
    sft.lean(model, contextual=sft.Contextual(0.5))
    with torch.no_grad():
        assert torch.equal(model[NAME](x), plain[NAME](x))
    model.eval()
    assert torch.equal(model[NAME](x), plain[NAME](x))
    model.train()
    assert not torch.allclose(model[NAME](x), plain[NAME](x), atol=1e-3)


def test_a_step_takes_its_share_of_the_products_and_keeps_no_weights():
    torch.manual_seed(0)
    model = nn.ModuleDict({NAME: MLP(False)}).requires_grad_(False).train()
    x = tokens(torch.float32, 2000)

    def measured():
        saved = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t: saved.append(t) or t, lambda t: t
        )
        with FlopCounterMode(display=False) as flops, hooks:
            model[NAME](x).sum().backward()
        own = {p.data_ptr() for p in model.parameters()}
        return flops.get_total_flops(), sum(t.numel() for t in saved if t.data_ptr() not in own)

    sft.lean(model)
    flops, kept = measured()
    sft.lean(model, contextual=sft.Contextual(0.5, every=10))
    fewer, less = measured()
    estimate = 2 * 2 * 200 * HIDDEN * CHANNELS
    assert fewer == flops // 2 + estimate
    assert less == kept // 2 + CHANNELS // 2


def test_layers_that_train_stay_exact_and_are_named():
    model, _ = build("Llama")
    model = double(model)
    plan = {"model.layers.0.self_attn.q_proj.weight": sft.Rows([0])}
    sft.convert(model, plan)
    settings = sft.Contextual(0.5, 4)
    report = sft.lean(model, contextual=settings)
    name = "model.layers.0.mlp"
    assert report.thinned == {name: ""} and report.contextual == settings
    assert "APPROXIMATE in training: 1 gated MLPs use 50% of their channels" in str(report)
    assert "APPROXIMATE" not in str(sft.lean(copy.deepcopy(model)))
    report = sft.lean(model, contextual=settings._replace(but=("*.layers.0.*",)))
    assert report.thinned == {name: "as asked for"}
    assert "1 gated MLPs stay exact: as asked for" in report.brief()
    sft.revert(model)
    sft.convert(model, {f"{name}.up_proj.weight": sft.Rows([0])})
    assert sft.lean(model, contextual=settings).thinned == {
        name: "one of its layers is a SelectiveLinear"
    }
    sft.revert(model)
    model.requires_grad_(False)
    put(model, {f"{name}.down_proj": SalientMap([0])})
    assert sft.lean(model, contextual=settings).thinned == {name: "one of its layers has hooks"}


def test_what_changes_later_is_exact_too():
    model, x = model_with(), tokens()
    plain = copy.deepcopy(model)
    sft.lean(model, contextual=sft.Contextual(0.5))
    model[NAME].up_proj.requires_grad_(True)
    torch.testing.assert_close(model[NAME](x), plain[NAME](x))
    model[NAME].up_proj.requires_grad_(False)
    assert not torch.allclose(model[NAME](x), plain[NAME](x), atol=1e-3)


def test_under_autocast(device):
    model, x = model_with(dtype=torch.float32), tokens(torch.float32)
    sft.lean(model, contextual=sft.Contextual(1.0))
    plain = copy.deepcopy(model)
    sft.revert(plain)
    with torch.autocast(device.type, torch.bfloat16):
        got, want = model[NAME](x), plain[NAME](x)
    assert got.dtype == want.dtype
    grads = [torch.autograd.grad(each.sum(), x)[0] for each in (got, want)]
    assert grads[0].dtype == torch.float32
    assert (grads[0] - grads[1]).norm() < 2e-2 * grads[1].norm()


@pytest.mark.parametrize("make", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_what_takes_it_away(make):
    model, x = model_with(), tokens()
    want = model[NAME](x)
    sft.lean(model, contextual=sft.Contextual(0.5))
    thinned = model[NAME](x)
    assert torch.equal(make(model)[NAME](x), thinned)
    sft.lean(model)  # leaves it
    assert torch.equal(model[NAME](x), thinned)
    sft.revert(model)
    assert not any(is_lean(module) for module in model.modules())
    assert torch.equal(model[NAME](x), want)


@pytest.mark.parametrize("settings", [dict(share=0.0), dict(share=1.5), dict(every=0)])
def test_refusals(settings):
    model = model_with()
    with pytest.raises(ValueError, match=f"contextual.*{next(iter(settings.values()))}"):
        sft.lean(model, contextual=sft.Contextual(**settings))
    assert not any(is_lean(module) for module in model.modules())
