"""Columns: whole columns of a matrix."""

from torch import Tensor

from ..ops.layout import Layout, Places, Shape
from .lines import Lines, numbers


class Columns(Lines):
    """Whole columns of the matrix: input features of a linear layer. values: [rows, C]."""

    __slots__ = ()
    kind, dim = "columns", 1
    is_compiled = in_triton = True

    @staticmethod
    def shape_of(layout: Layout, shape: Shape) -> tuple[int, int]:
        return shape[0], layout.index.shape[0]

    @staticmethod
    def places_of(layout: Layout, shape: Shape) -> Places:
        return numbers(shape[0], layout.index)[:, None], layout.index.long()

    @classmethod
    def product_of(cls, layout: Layout, grad_output: Tensor, input: Tensor) -> Tensor:
        is_compact = input.size(1) == layout.index.size(0)
        return grad_output.T @ (input if is_compact else input[:, layout.index.long()])
