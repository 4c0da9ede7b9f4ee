"""Flops: equal to trying every set of tensors, and what a layer's backward is said to cost."""

import itertools
import random

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sparse_ft as sft
from sparse_ft.salience.budgets import knapsack
from sparse_ft.salience.budgets.knapsack import Step, most_valuable


def cost(steps, chosen):
    """Of the gradients, and of the way down to the last one."""
    deepest = max(chosen, default=-1)
    return sum(steps[n].own for n in chosen) + sum(s.passing for s in steps[: deepest + 1])


def worth(steps, chosen):
    return sum(steps[n].value for n in chosen)


def brute_force(steps, budget):
    sets = itertools.chain.from_iterable(
        itertools.combinations(range(len(steps)), size) for size in range(len(steps) + 1)
    )
    return max(worth(steps, s) for s in sets if cost(steps, s) <= budget)


@pytest.mark.parametrize("seed", range(300))
def test_equal_to_brute_force(seed):
    draw = random.Random(seed)
    steps = [
        Step(draw.random(), draw.randint(1, 30), draw.randint(0, 20))
        for _ in range(draw.randint(1, 9))
    ]
    budget = draw.randint(0, sum(s.own + s.passing for s in steps))
    chosen = most_valuable(steps, budget)
    assert chosen == sorted(set(chosen)) and cost(steps, chosen) <= budget
    assert worth(steps, chosen) == pytest.approx(brute_force(steps, budget), abs=1e-12)


def test_many_tensors_stay_within_the_budget(monkeypatch):
    monkeypatch.setattr(knapsack, "MOST", 200)
    draw = random.Random(0)
    steps = [Step(draw.random(), draw.randint(1, 10**9), draw.randint(0, 10**8)) for _ in range(60)]
    budget = sum(s.own + s.passing for s in steps) // 2
    chosen = most_valuable(steps, budget)
    assert cost(steps, chosen) <= budget
    monkeypatch.setattr(knapsack, "MOST", 20_000)
    assert worth(steps, chosen) > 0.98 * worth(steps, most_valuable(steps, budget))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.down = nn.Conv2d(8, 8, 3, stride=2)
        self.hidden, self.head = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x):
        hidden = self.down(self.conv(x).relu()).relu().mean((2, 3))
        return self.head(self.hidden(hidden).relu())


def loss(model, x):
    return model(x).square().mean()


def choose(model, share, **settings):
    return sft.select(
        model,
        budget=sft.Flops(share),
        score="gradient_abs",
        targets="*.weight",
        batches=[torch.randn(2, 3, 12, 12)],
        loss=loss,
        **settings,
    )


def test_the_backward_of_the_choice_takes_its_share():
    """By torch's own counter."""
    model = Net()

    def flops(trained):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        value = loss(model, torch.randn(2, 3, 12, 12))
        with FlopCounterMode(display=False) as counter:
            value.backward()
        return counter.get_total_flops()

    everything = flops([name for name, _ in model.named_parameters()])
    seen = set()
    for share in (0.05, 0.2, 0.4, 0.6, 0.8, 1.0):
        plan = choose(model, share)
        assert set(plan.values()) <= {"all"}
        taken = flops(list(plan)) if plan else 0
        assert taken <= share * everything * 1.001
        seen.add(tuple(plan))
    assert len(seen) >= 3 and len(plan) == 4


@pytest.mark.parametrize(
    "settings, message",
    [({"structure": "rows"}, r"structure: Flops\(share=0.5\) chooses whole tensors, got 'rows'")],
)
def test_what_it_cannot_choose_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        choose(Net(), 0.5, **settings)
    with pytest.raises(ValueError, match="share: .*got 0"):
        sft.Flops(0)
    with pytest.raises(ValueError, match="batches: Flops.*got None"):
        sft.select(Net(), budget=sft.Flops(0.5), score="magnitude")
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    with pytest.raises(ValueError, match="targets: '1.weight' is of no linear layer"):
        sft.select(
            model,
            budget=sft.Flops(0.5),
            score="gradient",
            targets="*.weight",
            batches=[torch.randn(2, 4)],
            loss=loss,
        )
