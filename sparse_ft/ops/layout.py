"""Layouts: where in a matrix [rows, columns] the entries of a compact `values` tensor lie.

| kind      | index                                                     | values          |
|-----------|-----------------------------------------------------------|-----------------|
| "rows"    | [R] row numbers                                           | [R, columns]    |
| "columns" | [C] column numbers                                        | [rows, C]       |
| "blocks"  | [n, 2] (block_row, block_col)                             | [n, bh, bw]     |
| "entries" | [nnz] flat positions row * columns + column               | [nnz]           |

Every index is sorted and unique, int32 or int64. Blocks that reach past the edge are padded with
zeros. What depends on the kind is in one file of `sparse_ft.structures` each.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ._common import check_floating
from ._native import Unserved

Shape = tuple[int, int] | torch.Size  # of a matrix: rows, columns
Places = tuple[Tensor, Tensor]  # row and column of every value, int64, broadcastable to `values`


class Structure:
    """What depends on the kind of a layout. Its methods take the layout that they are about."""

    __slots__ = ()
    kind: ClassVar[str]
    index_columns: ClassVar[int] = 0  # of an index with two dimensions
    has_padding: ClassVar[bool] = False  # whether values may reach past the edge of the matrix
    is_compiled: ClassVar[bool] = False  # whether csrc/layout.h knows it
    in_triton: ClassVar[bool] = False  # whether kernels/layout.py knows it
    # Share of the matrix from which the compiled part gathers from strips of the dense product.
    strips_from: ClassVar[float | None] = None

    @staticmethod
    def shape_of(layout: "Layout", shape: Shape) -> tuple[int, ...]:
        """Shape of `values` for a matrix of `shape`."""
        raise NotImplementedError

    @staticmethod
    def places_of(layout: "Layout", shape: Shape) -> Places:
        """Row and column of every value; padding lies outside of the matrix."""
        raise NotImplementedError

    @classmethod
    def product_of(cls, layout: "Layout", grad_output: Tensor, input: Tensor) -> Tensor:
        """Values of `grad_output.T @ input`, in plain PyTorch: from the dense product, unless a
        structure knows better.

        grad_output: [T, rows]. input: [T, columns], of one dtype.
        """
        product = grad_output.T @ input
        row, column = cls.places_of(layout, product.shape)
        return product[row, column]


_INTEGERS = (torch.int32, torch.int64)
STRUCTURES: dict[str, type[Structure]] = {}  # by kind; `sparse_ft.structures` fills it


class Layout(NamedTuple):
    """Where the entries of `values` lie in a matrix."""

    kind: str
    index: Tensor  # type: ignore[assignment]  # not tuple's method
    block_h: int = 1
    block_w: int = 1

    @property
    def structure(self) -> type[Structure]:
        return STRUCTURES[self.kind]

    def values_shape(self, shape: Shape) -> tuple[int, ...]:
        """Shape of `values` for a matrix of `shape`."""
        return STRUCTURES[self.kind].shape_of(self, shape)

    def places(self, shape: Shape) -> Places:
        """Row and column of every value; padding lies outside of the matrix."""
        return STRUCTURES[self.kind].places_of(self, shape)

    def compiled(self) -> "Layout":
        """This layout as the compiled part takes it: its index lies in memory in order.

        Raises `Unserved` for a structure that is not compiled.
        """
        if not STRUCTURES[self.kind].is_compiled:
            raise Unserved(self.kind)
        if self.index.is_contiguous():
            return self
        return self._replace(index=self.index.contiguous())

    def of_triton(self) -> "Layout":
        """This layout. Raises `Unserved` for a structure that has no Triton part."""
        if not STRUCTURES[self.kind].in_triton:
            raise Unserved(self.kind)
        return self

    def check(self) -> None:
        """Errors that need no data, by the name of the argument and its value."""
        kind, index, block_h, block_w = self
        structure = STRUCTURES.get(kind)
        if structure is None:
            raise ValueError(f"kind: expected {_kinds()}, got {kind!r}")
        columns = structure.index_columns
        if index.dim() != (2 if columns else 1) or (columns and index.size(1) != columns):
            want = f"[n, {columns}]" if columns else "[n]"
            raise ValueError(
                f"index: expected shape {want} for kind {kind!r}, got {tuple(index.shape)}"
            )
        if index.dtype not in _INTEGERS:
            raise TypeError(f"index: expected int32 or int64, got {index.dtype}")
        if block_h < 1 or block_w < 1:
            raise ValueError(f"block_size: expected positive sizes, got ({block_h}, {block_w})")

    def check_values(self, values: Tensor, shape: Shape, name: str = "values") -> None:
        """Errors of values that do not fit on a matrix of `shape`."""
        check_floating(name, values)
        want = self.values_shape(shape)
        if values.shape != want:
            raise ValueError(
                f"{name}: expected shape {tuple(want)} for kind {self.kind!r} on a matrix"
                f" {tuple(shape)}, got {tuple(values.shape)}"
            )


_new = tuple.__new__  # Layout(...), in half of the time


def as_layout(kind: str | Layout, index: Tensor | None, block_h: int, block_w: int) -> Layout:
    """What the arguments of an op that takes a layout stand for.

    Raises TypeError for what is no kind and index, above all for a Selection: the dispatcher would
    speak of casts.
    """
    if type(kind) is str and index is not None:
        return _new(Layout, (kind, index, block_h, block_w))
    if isinstance(kind, Layout):
        return kind
    way_out = "a selection is given as its layout: *selection.layout"
    if type(kind) is not str:
        raise TypeError(f"kind: expected {_kinds()}, got {_told(kind)}; {way_out}")
    raise TypeError(f"index: expected an integer tensor, got {_told(index)}; {way_out}")


def _kinds() -> str:
    """ "'rows', 'columns', 'blocks' or 'entries'"."""
    *others, last = (repr(kind) for kind in STRUCTURES)
    return f"{', '.join(others)} or {last}"


def _told(value: object) -> str:
    return f"a Tensor {list(value.shape)}" if isinstance(value, Tensor) else repr(value)


def inside(row: Tensor, column: Tensor, shape: Shape) -> Tensor:
    """Bool mask over `values`: False where a block is padding."""
    return (row < shape[0]) & (column < shape[1])


def check_matrix(matrix: Tensor) -> None:
    """Errors of what is no matrix of floating-point numbers."""
    if matrix.dim() != 2:
        raise ValueError(
            f"matrix: expected 2 dimensions [rows, columns], got shape {tuple(matrix.shape)}"
        )
    check_floating("matrix", matrix)
