"""Once and Every: when the rule is asked, with how much, and that training goes on."""

import math

import pytest
import torch
from torch import nn

import sparse_ft as sft


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(12, 10), nn.Linear(10, 4)

    def forward(self, x):
        return self.second(self.first(x).tanh())


def batch(number):
    return torch.randn(8, 12, generator=torch.Generator().manual_seed(number))


def loss(model, x):
    return model(x).square().mean()


def begin():
    model = Net()
    plan = sft.select(model, density=0.2, structure="entries", score="random", targets="*.weight")
    sft.convert(model, plan)
    return model, sft.SelectiveAdamW(model.parameters(), lr=1e-2)


def train(model, optimizer, schedule, steps, begun=0):
    """The numbers of the steps at which something changed."""
    changed = []
    for number in range(begun, begun + steps):
        loss(model, batch(number)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if schedule.step() is not None:
            changed.append(schedule.steps)
    return changed


def by_gradient(model):
    batches = [batch(100), batch(101)]
    settings = {"structure": "entries", "score": "gradient", "batches": batches, "loss": loss}
    return sft.select(model, density=0.2, **settings)


def test_once():
    model, optimizer = begin()
    values = [id(p) for p in model.parameters()]
    wanted = []

    def rule(model):
        wanted.append(by_gradient(model))
        return wanted[-1]

    schedule = sft.Once(3, rule).attach(model, optimizer)
    assert train(model, optimizer, schedule, 7) == [3] and len(wanted) == 1
    assert {n: model.get_submodule(n[:-7]).selection for n in wanted[0]} == dict(wanted[0])
    assert values == [id(p) for p in model.parameters()]


def test_every_by_the_weights_as_they_are():
    """LIFT's: the largest of the principal part, again and again."""
    model, optimizer = begin()

    def rule(model):
        score = sft.scores.principal(2)
        return sft.select(model, density=0.2, structure="entries", score=score)

    schedule = sft.Every(4, rule).attach(model, optimizer)
    assert train(model, optimizer, schedule, 13) == [4, 8, 12]
    assert train(model, optimizer, sft.Every(2, rule, total=4).attach(model, optimizer), 9) == [
        2,
        4,
    ]


@pytest.mark.parametrize(
    "amount, expected",
    [
        ("linear", [0.75, 0.5, 0.25, 0.0]),
        ("cosine", [(1 + math.cos(math.pi * t)) / 2 for t in (0.25, 0.5, 0.75, 1)]),
        ("cubic", [0.75**3, 0.5**3, 0.25**3, 0.0]),
        (lambda done: done * 2, [0.5, 1.0, 1.5, 2.0]),
    ],
)
def test_how_much_is_to_change(amount, expected):
    model, optimizer = begin()
    asked = []

    def rule(model, much):
        asked.append(much)
        return by_gradient(model)

    schedule = sft.Every(2, rule, amount, total=8).attach(model, optimizer)
    train(model, optimizer, schedule, 12)
    assert asked == pytest.approx(expected)


def test_spiel_by_candidates():
    """Entries that join bring what was collected of them; they are found and summed meanwhile."""
    model, optimizer = begin()
    candidates = sft.Candidates(model, 5)
    candidates.find([batch(100)], loss)

    def rule(model):
        """The candidates of the largest sums take the place of the smallest values."""
        plan = {}
        for name, entries in candidates.entries.items():
            module = model.get_submodule(name[:-7])
            best = candidates.sums[name].abs().topk(2).indices
            kept = module.values.detach().abs().topk(len(module.selection) - 2).indices
            index = torch.cat((module.selection.index[kept], entries.index[best]))
            plan[name] = sft.Entries(index.sort().values)
        return plan

    def seeds():
        return candidates.seeds()

    schedule = sft.Every(3, rule, seeds=seeds).attach(model, optimizer)
    for number in range(3):
        loss(model, batch(number)).backward()
        optimizer.step()
        candidates.step()
        optimizer.zero_grad()
        report = schedule.step()
    assert report.joined == 4 and report.dropped == 4
    for name, entries in candidates.entries.items():
        module = model.get_submodule(name[:-7])
        joined = torch.isin(module.selection.index, entries.index)
        moments = optimizer.state[module.values]["exp_avg"]
        assert joined.sum() == 2 and (moments[joined] != 0).all()


def test_goes_on_where_it_was_saved():
    model, optimizer = begin()
    schedule = sft.Every(4, by_gradient).attach(model, optimizer)
    assert train(model, optimizer, schedule, 6) == [4]
    state = schedule.state_dict()
    other = sft.Every(4, by_gradient).attach(model, optimizer)
    other.load_state_dict(state)
    assert train(model, optimizer, other, 6, begun=6) == [8, 12]


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: sft.Once(0, by_gradient), ValueError, "after: .*got 0"),
        (lambda: sft.Every(0, by_gradient), ValueError, "n: .*got 0"),
        (lambda: sft.Every(2, 3), TypeError, "rule: .*got 3"),
        (lambda: sft.Every(2, by_gradient, "square", 9), ValueError, "amount: .*got 'square'"),
        (lambda: sft.Every(2, by_gradient, "linear"), ValueError, "total: .*got None"),
        (lambda: sft.Once(1, by_gradient).step(), RuntimeError, "Once: it has no model yet"),
    ],
)
def test_what_is_no_schedule_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
