"""reselect every 10 steps for 200 steps is dense training in which every entry has its own age."""

import copy

import pytest
import torch
from helpers.reselected import EVERY, dense_run, distance, loss_of, net, our_run, plan_of
from torch import nn

import sparse_ft as sft

WAYS = {
    "kept": {},
    "decayed": {"weight_decay": 0.1},
    "restored": {"restore": True},
    "as old as the tensor": {"by_entry": False},
}


def arguments(way):
    """Ours, for a way of the dense run."""
    settings = dict(WAYS[way])
    if settings.pop("restore", False):
        settings.update(convert={"origin": True}, reselect={"dropped": "restore"})
    if not settings.pop("by_entry", True):
        settings["reselect"] = {"age": "tensor"}
    return settings


@pytest.mark.parametrize("way", WAYS)
def test_in_fp64_to_the_last_digits(way):
    dense, ours = dense_run(torch.float64, **WAYS[way]), our_run(torch.float64, **arguments(way))
    assert distance(ours, dense) <= 1e-13
    assert distance(ours, net(torch.float64)) > 0.01


def test_in_fp32_no_farther_than_twice_the_dense_run():
    exact = dense_run(torch.float64)
    ours, dense = our_run(torch.float32), dense_run(torch.float32)
    assert distance(ours, exact) <= 2 * distance(dense, exact)


def test_a_lean_model_is_as_far_from_fp64_as_twice_the_dense_run():
    exact = dense_run(torch.float64)
    lean, dense = our_run(torch.float32, convert={"lean": True}), dense_run(torch.float32)
    assert distance(lean, exact) <= 2 * distance(dense, exact)


def halves(model, step, dtype):
    """The gradients of two halves of a batch add up."""
    for half in (0, 1):
        (loss_of(model, 2 * step + half, dtype) / 2).backward()


def test_gradients_accumulate_to_the_last_digits():
    ours = our_run(torch.float64, backward=halves)
    assert distance(ours, dense_run(torch.float64, backward=halves)) <= 1e-13


def test_a_grad_scaler_changes_no_bit():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)

    def scaled(model, step, dtype):
        scaler.scale(loss_of(model, step, dtype)).backward()

    def step(optimizer):
        scaler.step(optimizer)
        scaler.update()

    plain = our_run(torch.float32)
    assert distance(our_run(torch.float32, backward=scaled, step=step), plain) == 0
    ours = our_run(torch.float32, backward=scaled, step=step, unscale_in_step=True)
    assert distance(ours, plain) == 0


def test_steps_in_backward_and_a_resumed_run_have_the_same_bits():
    plain = our_run(torch.float32)
    assert distance(our_run(torch.float32, in_backward=True), plain) == 0

    def resumed(model, optimizer, step):
        if step != 100:
            return model, optimizer
        fresh = net(torch.float32)
        sft.convert(fresh, plan_of(step))
        fresh.load_state_dict(copy.deepcopy(model.state_dict()))
        other = sft.SelectiveAdamW(fresh.parameters(), 1.0)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        return fresh, other

    assert distance(our_run(torch.float32, change=resumed), plain) == 0


def test_a_16_bit_weight_has_the_masters_of_a_twin_whose_weight_is_rounded():
    """The same gradients into values over a bf16 and over an fp32 weight: the same bits."""
    ends = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(1)
        linear = nn.Linear(32, 24, bias=False)
        linear.weight.data = linear.weight.data.bfloat16().to(dtype)
        model = nn.Sequential(linear)
        index = torch.randperm(32 * 24)
        sft.convert(model, {"0.weight": sft.Entries(index[:200].sort().values)})
        optimizer = sft.SelectiveAdamW(model.parameters(), 1e-3)
        masters = {}
        for step in range(60):
            if step and step % EVERY == 0:
                # entries that join hold what the 16-bit weight can
                index = torch.cat((index[20:], index[:20]))
                chosen = sft.Entries(index[:200].sort().values)
                sft.reselect(model, optimizer, {"0.weight": chosen})
            model[0].values.grad = torch.randn(200)
            optimizer.step()
            for place, value in zip(model[0].selection.index.tolist(), model[0].values.tolist()):
                masters[step, place] = value
        ends.append((masters, model[0].values.detach().clone()))
    assert ends[0][0] == ends[1][0]
    assert torch.equal(ends[0][1], ends[1][1])
