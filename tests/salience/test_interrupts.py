"""Ctrl-C at any moment of `select`: the model, its hooks and random states are as they were."""

import random
import signal
import time

import pytest
import torch
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


class Interrupts:
    """Sends this process SIGINT after some time; it is heard in `with` only."""

    def __init__(self, seconds):
        self._seconds = max(seconds, 1e-6)
        self._listening = False

    def _hear(self, *_):
        if self._listening:
            raise KeyboardInterrupt

    def __enter__(self):
        alarm = lambda *_: signal.raise_signal(signal.SIGINT)  # noqa: E731
        self._before = [
            (number, signal.signal(number, handler))
            for number, handler in ((signal.SIGINT, self._hear), (signal.SIGALRM, alarm))
        ]
        self._listening = True
        self._timer = signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *_):
        self._listening = False
        signal.setitimer(signal.ITIMER_REAL, *self._timer)
        for number, handler in self._before:
            signal.signal(number, handler)


def seconds_of(act):
    """The least of three times."""
    taken = []
    for _ in range(3):
        begun = time.perf_counter()
        act()
        taken.append(time.perf_counter() - begun)
    return min(taken)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
@pytest.mark.parametrize("choice", CHOICES)
def test_at_random_moments(choice):
    model = Net()
    settings = CHOICES[choice]
    wanted = choose(model, **settings)
    takes = seconds_of(lambda: choose(model, **settings))
    before = looks(model)
    draw = random.Random(choice)
    came = 0
    for _ in range(MOMENTS):
        try:
            with Interrupts(draw.random() * takes):
                choose(model, **settings)
        except KeyboardInterrupt:
            came += 1
        assert_left_alone(model, before)
    assert came >= 5
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
