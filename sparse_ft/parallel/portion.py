"""Portion: what of a selection lies in the part of a matrix that one process holds."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.layout import inside
from ..selection import Blocks, Columns, Entries, Rows, Selection

Shape = tuple[int, int]
Among = tuple[slice | Tensor, ...]  # indexes `values`


class Rectangle(NamedTuple):
    """Which rows and columns of a matrix."""

    rows: range
    columns: range

    @property
    def shape(self) -> Shape:
        return len(self.rows), len(self.columns)


class Portion(NamedTuple):
    """What of a selection lies in a rectangle of its matrix.

    selection: of the rectangle, a matrix of `shape`; None where none of it lies there. among: where
    its values lie among all values.
    """

    selection: Selection | None
    among: Among
    shape: Shape

    def take(self, values: Tensor) -> Tensor:
        """Of all `values`, those that lie in the rectangle, as `selection` orders them."""
        return values[self.among].contiguous()

    def put(self, here: Tensor, values: Tensor) -> Tensor:
        """`values` with those that lie in the rectangle replaced, in place, by `here`."""
        values[self.among] = here.to(values.dtype)
        return values


def rectangle_of(
    whole: Sequence[int], offset: Sequence[int], size: Sequence[int], matrix_shape: Shape
) -> Rectangle:
    """The part of a matrix that the box of `size` at `offset` is, in a tensor of shape `whole` that
    is viewed as the matrix.

    Raises ValueError where the box is no rectangle of it.
    """
    split = _dimensions_of_rows(whole, matrix_shape[0])
    rows = _range(whole[:split], offset[:split], size[:split])
    columns = _range(whole[split:], offset[split:], size[split:])
    return Rectangle(rows, columns)


def _dimensions_of_rows(whole: Sequence[int], rows: int) -> int:
    """How many leading dimensions of `whole` make the rows of its matrix."""
    product, found = 1, 0
    for number, length in enumerate(whole):
        product *= length
        if product == rows:
            found = number + 1
    return found


def _range(whole: Sequence[int], offset: Sequence[int], size: Sequence[int]) -> range:
    """Of dimensions that are flattened into one: what a box in them is, cut in the first alone."""
    if not whole:
        return range(1)
    if list(whole[1:]) != list(size[1:]):
        raise ValueError(
            f"cut in its dimensions {tuple(whole)} into pieces {tuple(size)}, whose rows do not"
            " follow each other in the matrix; cut it in the first dimension or the last"
        )
    step = torch.Size(whole[1:]).numel()
    return range(offset[0] * step, (offset[0] + size[0]) * step)


def portion_of(selection: Selection, matrix_shape: Shape, here: Rectangle) -> Portion:
    """What of `selection`, on a matrix of `matrix_shape`, lies in the rectangle `here`.

    Rows and columns stay such; so do blocks where the rectangle cuts between them. All else becomes
    `Entries`.
    """
    cut = _CUTS.get(selection.kind, _entries)
    if selection.kind == "blocks" and not _cuts_between(selection, matrix_shape, here):
        cut = _entries
    part, among = cut(selection, matrix_shape, here)
    return Portion(part, among, here.shape)


Cut = tuple[Selection | None, Among]


def _between(index: Tensor, numbers: range) -> slice:
    """Where a sorted index names one of `numbers`."""
    ends = torch.tensor([numbers.start, numbers.stop], dtype=index.dtype, device=index.device)
    first, last = torch.searchsorted(index, ends).tolist()
    return slice(first, last)


def _rows(selection: Selection, matrix_shape: Shape, here: Rectangle) -> Cut:
    among = _between(selection.index, here.rows)
    columns = slice(here.columns.start, here.columns.stop)
    index = selection.index[among] - here.rows.start
    is_empty = not index.numel() or not len(here.columns)
    return None if is_empty else Rows(index), (among, columns)


def _columns(selection: Selection, matrix_shape: Shape, here: Rectangle) -> Cut:
    among = _between(selection.index, here.columns)
    rows = slice(here.rows.start, here.rows.stop)
    index = selection.index[among] - here.columns.start
    is_empty = not index.numel() or not len(here.rows)
    return None if is_empty else Columns(index), (rows, among)


def _cuts_between(selection: Selection, matrix_shape: Shape, here: Rectangle) -> bool:
    """Whether no block lies in the rectangle in part."""
    for numbers, block, size in zip(here, selection.block_size, matrix_shape):
        if numbers.start % block or len(numbers) < block:
            return False
        if numbers.stop % block and numbers.stop != size:
            return False
    return True


def _blocks(selection: Selection, matrix_shape: Shape, here: Rectangle) -> Cut:
    height, width = selection.block_size
    row, column = selection.index.unbind(1)
    first_row, last_row = here.rows.start // height, -(-here.rows.stop // height)
    first_column, last_column = here.columns.start // width, -(-here.columns.stop // width)
    is_here = (row >= first_row) & (row < last_row)
    is_here &= (column >= first_column) & (column < last_column)
    among = is_here.nonzero().squeeze(1)
    if not among.numel():
        return None, (among,)
    index = torch.stack([row[among] - first_row, column[among] - first_column], dim=1)
    return Blocks(index, (height, width)), (among,)


def _entries(selection: Selection, matrix_shape: Shape, here: Rectangle) -> Cut:
    row, column = torch.broadcast_tensors(*selection.layout.places(matrix_shape))
    is_here = inside(row, column, matrix_shape)
    is_here &= (row >= here.rows.start) & (row < here.rows.stop)
    is_here &= (column >= here.columns.start) & (column < here.columns.stop)
    first_entry = here.rows.start * len(here.columns) + here.columns.start
    position = row[is_here] * len(here.columns) + column[is_here] - first_entry
    among = is_here.nonzero(as_tuple=True)
    if not position.numel():
        return None, among
    position, order = position.sort()
    return Entries(position), tuple(index[order] for index in among)


_CUTS: dict[str, Callable[[Selection, Shape, Rectangle], Cut]] = {
    "rows": _rows,
    "columns": _columns,
    "blocks": _blocks,
}
