"""Rows: whole rows of a matrix."""

from torch import Tensor

from ..ops.layout import Layout, Places, Shape
from .lines import Lines, numbers


class Rows(Lines):
    """Whole rows of the matrix: output features of a linear layer. values: [R, columns]."""

    __slots__ = ()
    kind, dim = "rows", 0
    is_compiled = in_triton = True

    @staticmethod
    def shape_of(layout: Layout, shape: Shape) -> tuple[int, int]:
        return layout.index.shape[0], shape[1]

    @staticmethod
    def places_of(layout: Layout, shape: Shape) -> Places:
        return layout.index.long()[:, None], numbers(shape[1], layout.index)

    @classmethod
    def product_of(cls, layout: Layout, grad_output: Tensor, input: Tensor) -> Tensor:
        return grad_output[:, layout.index.long()].T @ input
