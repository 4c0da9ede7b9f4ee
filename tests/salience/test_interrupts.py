"""Ctrl-C at any moment of `select`: the model, its hooks and random states are as they were."""

import os
import random
import sys

import pytest
import torch
from helpers.interrupting import interrupted
from helpers.looks import assert_left_alone, looks
from torch import nn

import sparse_ft as sft

MOMENTS = 50
CHOICES = {
    "gradient": {"score": "gradient", "structure": "entries", "scope": "global"},
    "sums": {"score": "gradient_abs", "structure": "rows"},
    "fisher": {"score": "fisher", "structure": "columns"},
    "synflow": {"score": "synflow", "structure": "columns", "combine": "abs_of_sum"},
    "grasp": {"score": "grasp", "structure": "entries"},
    "activation": {"score": "activation", "structure": "columns"},
    "Flops": {"score": "taylor", "budget": sft.Flops(0.5), "density": None},
}


class Net(nn.Module):
    """Draws random numbers, keeps statistics, and has a gradient and a hook already."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.hidden, self.last = nn.Dropout(0.2), nn.Linear(4, 8), nn.Linear(8, 3)
        self.norm.weight.requires_grad_(False)
        self.last.weight.grad = torch.ones(3, 8)
        self.hidden.register_forward_hook(lambda *_: None)

    def forward(self, x):
        hidden = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.last(self.hidden(self.drop(hidden)).relu())


def choose(model, **settings):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(3, 3, 6, 6, generator=generator) for _ in range(3)]
    settings = {"density": 0.2, "targets": "*[tdn].weight", "batches": batches, **settings}
    return sft.select(model, loss=lambda m, x: m(x).square().mean(), **settings)


def is_watched(file):
    """Whose lines count: ours, and those of torch that run for us."""
    return "sparse_ft" in file or f"{os.sep}torch{os.sep}" in file


def lines_of(act):
    """How many there are."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if not is_watched(frame.f_code.co_filename):
            return None
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(None)
    return count


@pytest.mark.parametrize("choice", CHOICES)
def test_at_random_moments(choice):
    """Moments of its lines, not of a clock, which another process may hold up."""
    model = Net()
    settings = CHOICES[choice]
    wanted = choose(model, **settings)
    lines = lines_of(lambda: choose(model, **settings))
    before = looks(model)
    draw = random.Random(choice)
    came = 0
    for _ in range(MOMENTS):
        line = draw.randint(1, lines)
        came += interrupted(lambda: choose(model, **settings), line, is_watched)
        assert_left_alone(model, before)
    assert came > MOMENTS - 5  # another run may have a line less
    assert choose(model, **settings) == wanted


@pytest.mark.parametrize("choice", CHOICES)
def test_an_error_in_the_second_batch(choice):
    model = Net()
    before = looks(model)
    count = []

    def forward(x):
        count.append(1)
        if len(count) == 2:
            raise ArithmeticError
        return Net.forward(model, x)

    model.forward = forward
    before = looks(model)
    if choice == "Flops":
        count.append(1)  # that looks at one batch first
    with pytest.raises(ArithmeticError):
        choose(model, **CHOICES[choice])
    assert_left_alone(model, before)
