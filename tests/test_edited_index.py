"""An index that is edited past its version counter (`.numpy()`, `.data`) leads nowhere outside the
matrix.
"""

from functools import partial

import pytest
import torch
from torch import nn

import sparse_ft as sft
from sparse_ft import ops

ROWS, COLUMNS = 40, 60
INTEGERS = (torch.int32, torch.int64)
FAR = {"in front": -1, "behind": ROWS * COLUMNS, "far behind": 2**31 - 1, "far in front": -(2**31)}
COUNT = 700  # of single entries: they are looked at 16 together, and the last of them by themselves
INDEX = {
    "rows": torch.arange(5),
    "columns": torch.arange(5),
    "blocks": torch.tensor([[0, 0], [1, 3], [2, 1], [2, 3]]),
    "entries": torch.arange(COUNT) * 2,
}
EDITS = [(kind, at) for kind in INDEX for at in (0, 2, -1)] + [
    ("entries", 350),
    ("entries", COUNT - 20),
]
KINDS = pytest.mark.parametrize("kind, at", EDITS)


def edited(kind, at, number, dtype=torch.int32):
    """(kind, index, block_h, block_w): the index with another number at one place."""
    index = INDEX[kind].to(dtype, copy=True)
    index.view(-1).numpy()[at] = number
    return (kind, index, 16, 16) if kind == "blocks" else (kind, index, 1, 1)


class Guarded:
    """A matrix with room around it that must not change."""

    def __init__(self):
        self.memory = torch.full((3 * ROWS * COLUMNS,), 7.0)
        self.matrix = self.memory[ROWS * COLUMNS : 2 * ROWS * COLUMNS].view(ROWS, COLUMNS)

    def is_whole(self):
        around = torch.cat((self.memory[: ROWS * COLUMNS], self.memory[2 * ROWS * COLUMNS :]))
        return bool((around == 7).all())


def refused(call):
    with pytest.raises(IndexError, match="index"):
        call()


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("number", FAR.values(), ids=FAR)
@KINDS
def test_gather_scatter_and_swap(kind, at, number, dtype):
    layout = edited(kind, at, number, dtype)
    guarded = Guarded()
    shape = ops.layout.Layout(*layout).values_shape((ROWS, COLUMNS))
    refused(lambda: ops.gather_selected(guarded.matrix, *layout))
    for values in (torch.ones(shape), torch.ones(shape, dtype=torch.bfloat16)):
        for accumulate in (False, True):
            refused(
                partial(
                    ops.scatter_selected_, guarded.matrix, values, *layout, accumulate=accumulate
                )
            )
    refused(lambda: ops.swap_selected_(guarded.matrix, torch.ones(shape), *layout))
    assert guarded.is_whole()


@pytest.mark.parametrize("number", FAR.values(), ids=FAR)
@KINDS
def test_weight_gradient(kind, at, number):
    layout = edited(kind, at, number)
    grad_output, input = torch.randn(3, ROWS), torch.randn(3, COLUMNS)
    refused(lambda: ops.selected_wgrad(grad_output, input, *layout))
    values = torch.zeros(ops.layout.Layout(*layout).values_shape((ROWS, COLUMNS)))
    refused(lambda: ops.selected_wgrad_(values, grad_output, input, *layout))


@pytest.mark.parametrize("number", FAR.values(), ids=FAR)
@pytest.mark.parametrize("at", [0, 1000, 1199, -1])
def test_weight_gradient_of_so_many_entries_that_it_comes_in_strips(at, number):
    index = torch.arange(ROWS * COLUMNS, dtype=torch.int32)
    index.numpy()[at] = number
    refused(
        lambda: ops.selected_wgrad(torch.randn(3, ROWS), torch.randn(3, COLUMNS), "entries", index)
    )


SELECTIONS = {
    "rows": sft.Rows,
    "columns": sft.Columns,
    "entries": sft.Entries,
    "blocks": lambda i: sft.Blocks(i, 16),
}


@pytest.mark.parametrize("ways", ["numpy", "data"])
@KINDS
def test_a_step_that_was_prepared_before(kind, at, ways):
    model = nn.Sequential(nn.Linear(COLUMNS, ROWS))
    sft.convert(model, {"0.weight": SELECTIONS[kind](INDEX[kind])})
    optimizer = sft.SelectiveAdamW(model.parameters())
    weight = Guarded()
    model[0]._parameters["weight"].data = weight.matrix
    for _ in range(2):
        model[0].values.grad = torch.ones_like(model[0].values)
        optimizer.step()
    index = model[0].selection.index.view(-1)
    (index.numpy() if ways == "numpy" else index.data)[at] = 10**8
    version = model[0]._parameters["weight"]._version
    refused(optimizer.step)
    assert weight.is_whole()
    if kind == "entries":  # found on the way: what was written counts as written
        assert model[0]._parameters["weight"]._version > version


def test_memory_that_is_gone():
    for cls, index in ((sft.Rows, [1, 2]), (sft.Entries, list(range(100)))):
        selection = cls(index)
        selection.index.untyped_storage().resize_(0)
        with pytest.raises(ValueError, match="index"):
            selection.gather(torch.zeros(100, 100))
