"""Whose step changes which values.

Masters that are written back without a trace, claims, and other people's optimisers.
"""

import copy
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.interrupting import interrupted
from torch import nn

import sparse_ft as sft
from sparse_ft.nn import steps

pytestmark = pytest.mark.usefixtures("made_on_device")

PLAN = {"0.weight": sft.Rows([0, 3]), "0.bias": sft.Entries([1]), "2.weight": sft.Columns([1])}
X = torch.linspace(-1, 1, 16 * 8).view(16, 8).sin()


def net(plan=PLAN):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 1))
    sft.convert(model, plan)
    return model


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def loss_of(model):
    return (model(X) - 1).square().mean()


def train(model, optimizer, steps_to_take):
    losses = []
    for _ in range(steps_to_take):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


class Masters:
    """The hand-written loop: an optimiser of fp32 copies, written back through `.data` after its
    step.
    """

    def __init__(self, parameters, **settings):
        self.parameters = list(parameters)
        self.copies = [nn.Parameter(p.detach().clone()) for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.copies, lr=0.1, **settings)

    def zero_grad(self):
        for p in self.parameters:
            p.grad = None

    def step(self):
        for master, p in zip(self.copies, self.parameters):
            master.grad, p.grad = p.grad, None
        self.optimizer.step()
        for master, p in zip(self.copies, self.parameters):
            p.data.copy_(master.data)


@pytest.mark.parametrize("fused", [False, True])
def test_master_copies_train_as_the_values_themselves(fused):
    model, other = net(), net()
    expected = train(model, torch.optim.AdamW(trained(model), lr=0.1), 8)
    assert train(other, Masters(trained(other), fused=fused), 8) == pytest.approx(
        expected, abs=1e-6
    )
    assert expected[-1] < 0.5 * expected[0]
    for (name, want), got in zip(
        sft.revert(model).state_dict().items(), sft.revert(other).state_dict().values()
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "read", [lambda m: m.state_dict(), sft.revert, lambda m: [m[0].weight, m(X)], copy.deepcopy]
)
def test_whoever_reads_after_the_last_step_of_a_master_sees_it(read):
    model = net()
    train(model, Masters(trained(model)), 1)
    wanted = model[0].values.detach().clone()
    read(model)
    weight = sft.revert(model)[0].weight if model[0].__class__ is not nn.Linear else model[0].weight
    assert torch.equal(weight[[0, 3]], wanted)


def test_masters_after_a_warm_up_whose_optimiser_lives_on():
    """It has claimed the values and steps no more: nothing that follows may hide behind it."""
    model, other = net(), net()
    expected = train(model, torch.optim.SGD(trained(model), lr=0.1), 3)
    expected += train(model, torch.optim.AdamW(trained(model), lr=0.1), 5)
    warm_up = torch.optim.SGD(trained(other), lr=0.1)
    got = train(other, warm_up, 3)
    masters = Masters(trained(other))
    assert got + train(other, masters, 5) == pytest.approx(expected, abs=1e-6)


def test_masters_after_an_optimiser_that_is_gone():
    model, other = net(), net()
    optimizer = torch.optim.SGD(trained(model), lr=0.1)
    expected = train(model, optimizer, 3) + train(
        model, torch.optim.AdamW(trained(model), lr=0.1), 5
    )
    masters = Masters(trained(other))
    for p in masters.copies:
        p.grad = torch.zeros_like(p)
    got = train(other, torch.optim.SGD(trained(other), lr=0.1), 3)
    gc.collect()
    for master, p in zip(masters.copies, trained(other)):
        master.data.copy_(p.data)
    assert got + train(other, masters, 5) == pytest.approx(expected, abs=1e-6)


def unrelated():
    layer = nn.Linear(3, 3)
    layer(torch.ones(1, 3)).sum().backward()
    return torch.optim.SGD(layer.parameters(), lr=0.1)


def test_an_unrelated_step_between_forward_and_backward_disturbs_nothing():
    """Also when another forward comes between.

    The weight is shown anew, and the pending backward needs it.
    """
    for claimed in (False, True):
        model, alone = net(), net()
        if claimed:
            for each in (model, alone):
                train(each, torch.optim.SGD(trained(each), lr=0.1), 1)
        model.zero_grad()
        alone.zero_grad()
        other = unrelated()
        first = loss_of(model)
        other.step()
        second = model(2 * X).square().mean()
        other.step()
        (first + second).backward()
        (loss_of(alone) + alone(2 * X).square().mean()).backward()
        for got, want in zip(trained(model), trained(alone)):
            assert torch.equal(got.grad, want.grad)


def versions(model):
    return [p._version for p in model.parameters() if not p.requires_grad]


def count_writes(monkeypatch):
    written = []
    write = sft.nn.Selected._write
    monkeypatch.setattr(
        sft.nn.Selected, "_write", lambda self, *a: (written.append(self), write(self, *a)) and None
    )
    return written


@pytest.mark.parametrize("critic_steps", [1, 4])
def test_two_optimisers_in_turns_write_no_weight_of_the_other(monkeypatch, critic_steps):
    """A GAN: each one's step leaves the other's modules as they are, from the second turn on."""
    generator, critic = net(), net()
    optimizers = [sft.SelectiveAdamW(trained(m), lr=0.01) for m in (generator, critic)]

    def turn():
        for _ in range(critic_steps):
            generator(X)
            train(critic, optimizers[1], 1)
        train(generator, optimizers[0], 1)

    turn()
    turn()
    written = count_writes(monkeypatch)
    turn()
    turn()
    assert not written


def test_one_optimiser_a_parameter_writes_no_weight_of_the_others(monkeypatch):
    model = net()
    optimizers = [sft.SelectiveAdamW([p], lr=0.01) for p in trained(model)]
    written = None
    for turn in range(4):
        if turn == 2:
            written = count_writes(monkeypatch)
        loss_of(model).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert not written


def test_an_unrelated_optimisers_step_survives_a_module_that_lost_its_weight():
    layer = nn.Linear(8, 8)
    sft.convert(nn.Sequential(layer), {"0.weight": sft.Rows([1])})
    values = layer.values
    layer._parameters.pop("weight")  # as FSDP1, offloading and reparametrising do
    unrelated().step()
    values.grad = torch.ones_like(values)
    torch.optim.SGD([values], lr=0.1).step()
    sft.SelectiveAdamW([values], lr=0.1).step()


def test_a_copy_and_a_replaced_parameter_are_claimed_by_nobody():
    model = net()
    train(model, torch.optim.SGD(trained(model), lr=0.1), 1)
    twin = copy.deepcopy(model)
    got, expected = (
        train(twin, Masters(trained(twin)), 4),
        train(model, torch.optim.AdamW(trained(model), lr=0.1), 4),
    )
    assert got == pytest.approx(expected, abs=1e-6)
    twin.load_state_dict({name: t.clone() for name, t in model.state_dict().items()}, assign=True)
    got = train(twin, Masters(trained(twin)), 3)
    assert got == pytest.approx(
        train(model, torch.optim.AdamW(trained(model), lr=0.1), 3), abs=1e-6
    )


def test_a_warning_of_the_hook_points_at_the_step():
    model = nn.Sequential(nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sft.convert(model, {"0.weight": sft.Rows([1])})
    with pytest.warns(UserWarning, match="holds the weight but not the values") as said:
        optimizer.step()
    assert said[0].filename == __file__


def test_a_reverted_model_is_no_business_of_any_optimiser():
    """Its optimiser lives on, and others step.

    The layers are plain, and nobody tells them anything.
    """
    model = net()
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=0.1)
    train(model, optimizer, 1)
    sft.revert(model)
    other = nn.Linear(8, 1)
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        train(other, kind(other.parameters(), lr=0.1), 2)
    weight = model[0].weight.detach().clone()
    sft.convert(model, PLAN)
    train(model, sft.SelectiveAdamW(model.parameters(), lr=0.1), 1)
    assert not torch.equal(weight, model[0].weight) and optimizer.param_groups


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_the_hook_goes_with_the_last_values():
    """Not before. In a process of its own: other tests' modules have the hook, too."""
    script = Path(__file__).parents[1] / "helpers" / "hook_of_steps.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split() == ["last_values", "dies_within_a_step"], done.stderr
    assert done.returncode == 0, done.stderr


@pytest.fixture
def left_behind():
    """What is known of values that are gone, since a Ctrl-C in their finalizer was dropped."""
    model = net()
    held = [model[0].values]
    key = id(held[0])
    sft.revert(model)
    assert interrupted(held.clear, 1, lambda file: file == steps.__file__)
    return steps._owners.pop(key)


@pytest.mark.filterwarnings("error", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_parameter_with_the_id_of_values_that_are_gone_is_not_taken_for_them(left_behind):
    other = nn.Parameter(torch.ones(1))
    steps._owners[id(other)] = left_behind
    other.grad = torch.ones(1)
    torch.optim.SGD([other], lr=1.0).step()
    assert other == 0 and id(other) not in steps._owners


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_values_with_the_id_of_others_that_are_gone_are_forgotten_in_their_turn(left_behind):
    model = net()
    values = nn.Parameter(torch.ones(1))
    key = id(values)
    steps._owners[key] = left_behind
    steps.own(model[0], values)
    assert [owner() for owner in steps._owners[key]] == [model[0]]
    del values
    gc.collect()
    assert key not in steps._owners
