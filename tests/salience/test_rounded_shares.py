"""How many rows and columns a density takes: the nearest multiples of 8 of a wide weight."""

import pytest
import torch
from torch import nn

import sparse_ft as sft
from sparse_ft.salience.units import Structure, rounded


def test_the_nearest_multiple_of_eight_from_256_on():
    counts = {
        (41, 4096): 40,
        (40, 4096): 40,
        (47, 4096): 48,
        (15, 1536): 16,
        (1031, 14336): 1024,
        (1434, 14336): 1440,  # of 16 from 1024 on
        (1023, 14336): 1024,
        # exact
        (7, 4096): 7,
        (1, 256): 1,
        (300, 300): 300,
        (41, 255): 41,
        (11, 256): 8,
        (12, 256): 16,
        (299, 300): 296,
    }
    assert {of: rounded(*of) for of in counts} == counts


def test_four_more_or_less_than_was_asked():
    for width in (256, 300, 768, 2304, 4096, 14336):
        for density in (0.001, 0.01, 0.03, 0.1, 0.25, 0.5, 0.99, 1.0):
            asked = max(1, round(density * width))
            for kind, shape in (("rows", (width, 40)), ("columns", (40, width))):
                count = Structure(kind).share(shape, density)
                assert abs(count - asked) <= (8 if asked >= 1024 else 4)
                assert count % 8 == 0 or asked < 8 or density > 0.9
            assert Structure("entries").share((width, 1), density) == asked


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(512, 40), nn.Linear(40, 300)


@pytest.fixture
def model():
    return Wide()


def counts(model, budget, structure, **settings):
    plan = sft.select(
        model,
        budget=budget,
        structure=structure,
        score="magnitude",
        targets=["first.weight", "second.weight"],
        **settings,
    )
    return [len(selection) for selection in plan.values()]


def test_of_select(model):
    assert counts(model, 0.1, "columns") == [48, 4]  # of 512 (51 asked) and of 40
    assert counts(model, 0.1, "rows") == [4, 32]  # of 40 and of 300 (30 asked)
    assert counts(model, 1.0, "rows") == [40, 300]
    assert counts(model, 0.03, "columns") == [16, 1]  # 15 and 1.2 asked
    # What was chosen is the best of all.
    plan = sft.select(model, density=0.1, score="magnitude", targets="first.weight")
    best = model.first.weight.abs().sum(0).argsort(descending=True)[:48].sort().values
    assert torch.equal(plan["first.weight"].index.long(), best)


def test_numbers_that_are_given_stay(model):
    assert counts(model, 41, "columns") == [41, 40]
    assert sum(counts(model, 41, "columns", scope="global")) == 41
    assert len(sft.Columns(torch.arange(41))) == 41
    # Shared budgets, and those that are no density.
    entries = round(0.1 * (512 * 40 + 300 * 40))
    whole = dict(structure="rows", targets="*.weight", scope="global")
    shared = sft.select(model, density=0.1, score="magnitude", **whole)
    found = sum(each.nnz(model.get_parameter(name).shape) for name, each in shared.items())
    assert entries - 512 < found <= entries
    assert counts(model, sft.LikeLora(3), "columns") == [round(3 * 552 / 40), round(3 * 340 / 300)]


def test_an_estimate_has_the_same_counts(model):
    batch = {"input_ids": torch.zeros(1, 2, dtype=torch.long)}

    class Named(Wide):
        def forward(self, input_ids):
            return self.second(self.first(torch.ones(*input_ids.shape, 512))).sum()

    spec = {"structure": "columns", "density": 0.1, "targets": "*.weight"}
    told = sft.estimate(Named(), spec, inputs=batch)
    plan = sft.select(Named(), density=0.1, score="random", targets="*.weight")
    real = sft.estimate(Named(), plan, inputs=batch)
    assert told.optimizer_state == real.optimizer_state > 0
