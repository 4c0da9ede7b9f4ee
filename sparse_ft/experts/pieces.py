"""Pieces: what a selection of a weight that holds all experts has of each expert."""

from typing import NamedTuple

import torch

from .._torch import FakeTensor
from ..selection import Blocks, Columns, Entries, Rows, Selection


class Piece(NamedTuple):
    """What trains of one expert.

    span: where its values lie along dimension 0 of all values. selection: on the expert's own
    matrix [rows, columns]. is_whole: whether it is all of that.
    """

    span: slice
    selection: Selection
    is_whole: bool


Pieces = dict[int, Piece]  # by the expert's number; an expert of which nothing trains is missing


def pieces_of(selection: Selection, shape: tuple[int, int, int]) -> Pieces | None:
    """The pieces of `selection`, whose matrix is a weight [experts, rows, columns] with the first
    two dimensions as one.

    None for blocks that lie in two experts, and for structures that are not known here. In a dry
    run, whose index has no numbers, there are none: nothing is computed there.
    """
    if isinstance(selection.index, FakeTensor):
        return {}
    experts, rows, columns = shape
    index = selection.index.long()
    if isinstance(selection, Columns):
        found = {}
        for expert in range(experts):
            span = slice(expert * rows, (expert + 1) * rows)
            found[expert] = Piece(span, selection_on(Columns(index), rows, columns), False)
        return found
    if isinstance(selection, Rows):
        return _cut(index, index // rows, rows, Rows, rows, columns)
    if isinstance(selection, Entries):
        size = rows * columns
        return _cut(index, index // size, size, Entries, rows, columns)
    if isinstance(selection, Blocks):
        return _blocks(selection, rows, columns)
    return None


def selection_on(selection: Selection, rows: int, columns: int) -> Selection:
    """`selection` for matrices [rows, columns]."""
    return selection.on((rows, columns))


def _cut(
    index: torch.Tensor,
    expert: torch.Tensor,
    size: int,
    kind: type[Selection],
    rows: int,
    columns: int,
) -> Pieces:
    """Numbers that count through all experts, `size` for each; sorted, so each has a range."""
    found = {}
    for number, span in _ranges(expert):
        mine = kind(index[span] - number * size)
        is_whole = span.stop - span.start == size
        found[number] = Piece(span, selection_on(mine, rows, columns), is_whole)
    return found


def _blocks(selection: Selection, rows: int, columns: int) -> Pieces | None:
    height, width = selection.block_size
    if rows % height:
        return None
    down = rows // height
    index = selection.index.long()
    found = {}
    for number, span in _ranges(index[:, 0] // down):
        corner = torch.tensor([number * down, 0], device=index.device)
        mine = Blocks(index[span] - corner, (height, width))
        found[number] = Piece(span, selection_on(mine, rows, columns), False)
    return found


def _ranges(expert: torch.Tensor) -> list[tuple[int, slice]]:
    """(number, where it stands) of sorted numbers of experts."""
    numbers, counts = torch.unique_consecutive(expert, return_counts=True)
    ends = counts.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    spans = [slice(start, end) for start, end in zip(starts, ends)]
    return list(zip(numbers.tolist(), spans))
