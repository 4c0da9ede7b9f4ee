"""What choosing takes beside the model, against its promise, in matrices of the model's size."""

import pytest
import torch
from helpers.allocations import allocated_by
from torch import nn

import sparse_ft as sft
from sparse_ft.salience import signs, sums, tally, threshold

SIZE, LAYERS = 384, 6
MATRIX = SIZE * SIZE * 4  # bytes
STRIP = 1 << 13  # entries; 0.06 of a matrix, and a score has about ten of a strip's size in use

# accumulators a target, and what is made of one layer at a time: its dense gradient, scores, masks
ENTRIES = {
    "random": (0, 2),
    "magnitude": (0, 2),
    "principal": (0, 2),
    "activation": (0, 2),
    "gradient": (1, 2),
    "gradient_abs": (1, 2),
    "fisher": (1, 2),
    "saliency": (1, 2),
    "snip": (1, 2),
    "taylor": (1, 2),
    "synflow": (1, 2),
    "sensitivity": (2, 3),
    "ratio": (1, 15),  # two sorts of 64-bit ranks
}


def build():
    layers = [m for _ in range(LAYERS) for m in (nn.Linear(SIZE, SIZE, bias=False), nn.Tanh())]
    model = nn.Sequential(*layers)
    for parameter in model.parameters():
        parameter.data.mul_(0.05)  # no tanh is so far out that gradients are zero
    return model


def matrices_taken(folder, **settings):
    """The most that `select` of 1 % held at once, in matrices."""
    model = build()
    settings = {"density": 0.01, "targets": "*.weight", **settings}
    if sft.scores.as_score(settings["score"]).needs_batches:
        settings["batches"] = [torch.randn(4, SIZE) for _ in range(3)]
        settings["loss"] = lambda model, x: model(x).square().mean()
    return allocated_by(lambda: sft.select(model, **settings), folder).most / MATRIX


@pytest.fixture(autouse=True)
def small_strips(monkeypatch):
    for module in (signs, sums, tally, threshold):
        monkeypatch.setattr(module, "STRIP", STRIP)


@pytest.mark.parametrize("score", ENTRIES)
def test_scores_of_entries(score, tmp_path):
    accumulators, at_once = ENTRIES[score]
    taken = matrices_taken(tmp_path, score=score, structure="entries")
    assert taken <= LAYERS * accumulators + at_once


@pytest.mark.parametrize("structure", ["rows", "columns", "blocks", "tensors"])
@pytest.mark.parametrize("score", ["gradient_abs", "fisher", "taylor", "snip"])
def test_sums_over_units_take_strips(score, structure, tmp_path):
    """Not one dense gradient of a layer, whatever the number of layers."""
    budget = {"density": None, "budget": 2} if structure == "tensors" else {}
    taken = matrices_taken(tmp_path, score=score, structure=structure, block_size=16, **budget)
    assert taken <= 0.7


@pytest.mark.parametrize("score", ["gradient", "saliency", "synflow"])
def test_sizes_of_sums_take_strips(score, tmp_path):
    taken = matrices_taken(tmp_path, score=score, structure="columns", combine="abs_of_sum")
    assert taken <= 0.7 + 0.3  # the signs of synflow are a bit an entry


def test_passes_divide_the_accumulators(tmp_path):
    settings = {"score": "gradient", "structure": "entries", "accumulate": "passes"}
    assert matrices_taken(tmp_path, passes=LAYERS, **settings) <= 1 + 2
    assert matrices_taken(tmp_path, passes=3, **settings) <= LAYERS / 3 + 2
    assert matrices_taken(tmp_path, passes=LAYERS, scope="global", **settings) <= 1 + 3


@pytest.mark.parametrize("score, accumulators", [("magnitude", 0), ("gradient", 1)])
def test_a_global_budget_puts_nothing_together(score, accumulators, tmp_path):
    taken = matrices_taken(tmp_path, score=score, structure="entries", scope="global")
    assert taken <= LAYERS * accumulators + 2


def test_accumulators_of_16_bit_weights_are_fp32():
    """Many small gradients after a large one: a sum in bf16 would lose them."""
    model = nn.Linear(2, 1, bias=False).bfloat16()
    batches = [torch.tensor([[256.0, 0.0]])] + [torch.tensor([[0.5, 0.0]])] * 20
    batches = [batch.bfloat16() for batch in batches]
    seen = []

    def finish(acc, weight):
        seen.append(acc.clone())
        return acc

    score = sft.Score(lambda acc, W, g: acc.add_(g), finish, average=False)
    loss = lambda m, x: m(x).sum()  # noqa: E731
    sft.select(model, density=0.5, score=score, batches=batches, loss=loss)
    assert seen[0].dtype == torch.float32 and seen[0][0, 0] == 266
