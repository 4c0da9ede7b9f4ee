"""Steps that SelectiveAdamW skips.

On its own account when a gradient is not finite, and at a GradScaler's word.
"""

import copy
import pickle

import pytest
import torch
from helpers.small_net import (
    assert_same_bits,
    assert_weights_show_values,
    everything,
    loss_of,
    net,
    train,
    trained_parameters,
)
from torch import nn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "where", ["embed.values", "third.values", "third.bias", "conv.weight_selected.values"]
)
# One group of two: gradients then go through two calls.
@pytest.mark.parametrize("maximize", [False, True])
def test_a_nonfinite_gradient_skips_the_whole_step(bad, where, maximize):
    model = net()
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": params[:2], "maximize": maximize}, {"params": params[2:]}]
    optimizer = sft.SelectiveAdamW(groups, 1e-2, skip_nonfinite=True)
    train(model, optimizer, 2)
    before = everything(model, optimizer)
    loss_of(model, 3).backward()
    model.get_parameter(where).grad.view(-1)[-1] = bad
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert_same_bits(everything(model, optimizer), before)
    train(model, optimizer, 1)
    assert optimizer.skipped_steps == 1 and not torch.equal(
        model.get_parameter(where), before[where]
    )


def test_the_first_step_may_be_skipped():
    model, other = net(), net()
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2, skip_nonfinite=True)
    loss_of(model, 0).mul(float("inf")).backward()
    optimizer.step()
    train(model, optimizer, 3)
    again = sft.SelectiveAdamW(other.parameters(), 1e-2)
    train(other, again, 3)
    assert optimizer.skipped_steps == 1
    assert_same_bits(everything(model, optimizer), everything(other, again))


def test_the_count_is_kept_by_copies_and_pickles():
    model = net()
    optimizer = sft.SelectiveAdamW(model.parameters(), skip_nonfinite=True)
    loss_of(model, 0).mul(float("inf")).backward()
    optimizer.step()
    for again in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert again.skipped_steps == 1
        for p in again.param_groups[0]["params"]:
            p.grad = torch.full_like(p, float("inf"))
        again.step()
        assert again.skipped_steps == 2 and optimizer.skipped_steps == 1


def test_a_skipped_step_leaves_no_stale_weight():
    """Values were edited after the backward.

    The step that would have written them through did not happen.
    """
    model = net()
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2, skip_nonfinite=True)
    loss_of(model, 0).mul(float("nan")).backward()
    with torch.no_grad():
        for p in trained_parameters(model):
            p.clamp_(-0.01, 0.01)
    optimizer.step()
    loss_of(model, 0)
    assert_weights_show_values(model)


def test_without_skip_nonfinite_nan_is_written_as_torch_does():
    model = nn.Linear(4, 4)
    sft.convert(model, {"weight": sft.Rows([1])})
    model.values.grad = torch.full_like(model.values, float("nan"))
    sft.SelectiveAdamW(model.parameters()).step()
    assert model.weight[1].isnan().all() and model.weight[0].isfinite().all()


# GradScaler.


def scaled_train(model, optimizer, steps, start=0, unscale=False, factor=1.0, scaler=None):
    device = next(model.parameters()).device
    scaler = scaler or torch.amp.GradScaler(device.type, init_scale=2.0**12, growth_interval=10**6)
    for seed in range(start, start + steps):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, seed) * factor).backward()
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return scaler


@pytest.mark.parametrize("skip_nonfinite", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("in_step", [False, True])
def test_grad_scaler_changes_no_bit(unscale, skip_nonfinite, in_step):
    plain, scaled = net(), net()
    settings = dict(skip_nonfinite=skip_nonfinite, unscale_in_step=in_step)
    optimizers = [sft.SelectiveAdamW(m.parameters(), 1e-2, **settings) for m in (plain, scaled)]
    train(plain, optimizers[0], 5)
    scaler = scaled_train(scaled, optimizers[1], 5, unscale=unscale)
    assert_same_bits(everything(plain, optimizers[0]), everything(scaled, optimizers[1]))
    assert scaler.get_scale() == 2.0**12


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("in_step", [False, True])
def test_grad_scaler_skips_on_overflow_and_lowers_its_scale(unscale, in_step):
    model = net()
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2, unscale_in_step=in_step)
    scaler = scaled_train(model, optimizer, 2)
    before = everything(model, optimizer)
    scaled_train(model, optimizer, 1, start=2, unscale=unscale, factor=float("inf"), scaler=scaler)
    assert_same_bits(everything(model, optimizer), before)
    assert scaler.get_scale() == 2.0**11
    scaled_train(model, optimizer, 1, start=2, unscale=unscale, scaler=scaler)
    assert not torch.equal(model.first.values, before["first.values"])
    assert_weights_show_values(model)


def test_who_divides_by_the_scale(monkeypatch, device):
    """The scaler, so that gradients can be clipped.

    The step where it was asked to or where the scaler cannot.
    """
    model, half = net(), nn.Linear(4, 4, dtype=torch.float16)
    divided = []
    monkeypatch.setattr(
        torch.amp.GradScaler,
        "unscale_",
        lambda self, optimizer, of=torch.amp.GradScaler.unscale_: (
            divided.append(optimizer),
            of(self, optimizer),
        ),
    )
    ours = [
        sft.SelectiveAdamW(model.parameters(), unscale_in_step=in_step) for in_step in (False, True)
    ]
    for optimizer in ours:
        scaled_train(model, optimizer, 1)
    assert divided == ours[:1]
    optimizer = sft.SelectiveAdamW(half.parameters(), 1e-2, weight_decay=0)
    scaler, before = (
        torch.amp.GradScaler(device.type, init_scale=16.0),
        half.weight.detach().clone(),
    )
    scaler.scale(half(torch.ones(2, 4, dtype=torch.float16)).sum()).backward()
    scaler.step(optimizer)
    assert divided == ours[:1] and torch.allclose(half.weight, before - 1e-2, atol=1e-3)
    assert copy.deepcopy(ours[1]).unscale_in_step


@pytest.mark.parametrize("in_step", [False, True])
def test_two_groups_a_grad_scaler_and_skip_nonfinite_together(in_step, device):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    sft.convert(
        model, {"0.weight": sft.Columns([1]), "1.weight": sft.Entries([0, 7]), "1.bias": "all"}
    )
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": weights[:1], "lr": 0.1},
        {"params": weights[1:], "lr": 0.2, "maximize": True},
    ]
    optimizer = sft.SelectiveAdamW(groups, skip_nonfinite=True, unscale_in_step=in_step)
    scaler = torch.amp.GradScaler(device.type, init_scale=4.0)
    for bad, moves in ((False, True), (True, False), (False, True)):
        before = [p.detach().clone() for p in weights]
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(3, 6)).square().mean()).backward()
        if bad:
            weights[0].grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        assert all(torch.equal(p, b) != moves for p, b in zip(weights, before))
    assert scaler.get_scale() == 2.0
