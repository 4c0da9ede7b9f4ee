"""What of a selection lies in a part of its matrix: each entry in one part, and in its place."""

import pytest
import torch

import sparse_ft as sft
from sparse_ft.parallel.portion import Rectangle, portion_of, rectangle_of

SHAPE = 10, 9
SELECTIONS = [
    sft.Rows([0, 4, 9]),
    sft.Columns([2, 3, 8]),
    sft.Blocks([[0, 1], [1, 2], [3, 0], [4, 2]], (2, 4)),
    sft.Blocks([[0, 0], [3, 2]], (3, 3)),
    sft.Entries([0, 8, 9, 44, 89]),
]
CUTS = [(range(0, 10), range(0, 9)), (range(0, 4), range(4, 8)), (range(4, 10), range(0, 4))]
CUTS += [(range(3, 6), range(0, 9)), (range(0, 10), range(8, 9)), (range(5, 5), range(0, 9))]


@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
@pytest.mark.parametrize("rows, columns", CUTS, ids=str)
def test_takes_and_puts_what_lies_there(selection, rows, columns):
    matrix = torch.arange(1.0, 91).view(SHAPE)
    values = selection.gather(matrix)
    portion = portion_of(selection, SHAPE, Rectangle(rows, columns))
    there = matrix[rows.start : rows.stop, columns.start : columns.stop]
    mask = selection.mask(SHAPE)[rows.start : rows.stop, columns.start : columns.stop]
    assert portion.shape == there.shape
    if portion.selection is None:
        assert not mask.any()
        return
    assert torch.equal(portion.selection.mask(there.shape), mask)
    here = portion.take(values)
    assert torch.equal(here, portion.selection.gather(there.contiguous()))
    put = portion.put(here, torch.zeros_like(values))
    assert torch.equal(put != 0, marked(selection, mask, rows, columns))


def marked(selection, mask, rows, columns):
    """Which of all values lie there."""
    whole = torch.zeros(SHAPE)
    whole[rows.start : rows.stop, columns.start : columns.stop] = mask.float()
    return selection.gather(whole) != 0


def test_blocks_stay_blocks_where_the_cut_goes_between_them():
    blocks, columns = SELECTIONS[2], range(4, 9)
    between = portion_of(blocks, SHAPE, Rectangle(range(2, 10), columns))
    assert between.selection == sft.Blocks([[0, 1], [3, 1]], (2, 4))
    through = portion_of(blocks, SHAPE, Rectangle(range(3, 10), columns))
    assert through.selection.kind == "entries"


@pytest.mark.parametrize(
    "whole, offset, size, shape, want",
    [
        ((8, 6), (2, 0), (4, 6), (8, 6), (range(2, 6), range(6))),
        ((1, 6), (0, 2), (1, 3), (1, 6), (range(1), range(2, 5))),
        ((6,), (2,), (3,), (1, 6), (range(1), range(2, 5))),
        ((4, 3, 2, 2), (0, 1, 0, 0), (4, 2, 2, 2), (4, 12), (range(4), range(4, 12))),
        ((3, 4, 5), (1, 0, 0), (2, 4, 5), (12, 5), (range(4, 12), range(5))),
    ],
)
def test_a_box_is_a_rectangle_of_the_matrix(whole, offset, size, shape, want):
    assert rectangle_of(whole, offset, size, shape) == want


def test_a_box_that_is_none_is_refused():
    with pytest.raises(ValueError, match="rows do not follow each other in the matrix"):
        rectangle_of((3, 4, 5), (0, 2, 0), (3, 2, 5), (12, 5))
