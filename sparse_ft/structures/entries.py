"""Entries: single entries of a matrix."""

from torch import Tensor

from ..ops.layout import Layout, Places, Shape
from ..ops.strips import strips
from .selection import Limit, Selection


class Entries(Selection):
    """Single entries. index: flat positions `row * columns + column`. values: [nnz]."""

    __slots__ = ()
    kind = "entries"
    is_compiled = in_triton = True
    # One dot product an entry, below. At T = in = out = 2048, fp32, AVX2, the dots take 0.25 of the
    # dense time at 10 %, 0.83 at 40 % and 1.03 at 50 % (two threads: 1.15), strips 0.98 to 1.02 at
    # any share.
    strips_from = 0.4

    @staticmethod
    def shape_of(layout: Layout, shape: Shape) -> tuple[int]:
        return (layout.index.shape[0],)

    @staticmethod
    def places_of(layout: Layout, shape: Shape) -> Places:
        position, columns = layout.index.long(), max(shape[1], 1)
        return position // columns, position % columns

    @classmethod
    def product_of(cls, layout: Layout, grad_output: Tensor, input: Tensor) -> Tensor:
        index, columns = layout.index.long(), input.size(1)
        values = input.new_zeros(index.size(0))
        for rows, some in strips(index, grad_output.size(1), columns):
            where = index[some] - rows.start * columns
            values[some] = (grad_output[:, rows].T @ input).reshape(-1)[where]
        return values

    def _limits(self, shape: Shape) -> list[Limit]:
        return [Limit("flat position", self._bound, shape[0] * shape[1])]

    @classmethod
    def of_mask(cls, mask: Tensor, block_size: object) -> "Entries":
        return cls(mask.reshape(-1).nonzero().squeeze(1))
