"""Row groups: whole rows of a matrix, as many neighbours at a time as an attention head has."""

import torch
from torch import Tensor

from ..ops.layout import Layout, Places, Shape
from .lines import numbers
from .selection import Limit, Selection


class RowGroups(Selection):
    """Groups of `size` neighbouring rows. index: [n] group numbers. values: [n, size, columns]."""

    __slots__ = ()
    kind = "row_groups"
    has_block_size = True
    is_compiled = in_triton = True

    def __init__(self, index: object, size: int | tuple[int, int]):
        height, _ = size if isinstance(size, tuple) else (size, 1)
        self._init(index, (height, 1))

    @staticmethod
    def shape_of(layout: Layout, shape: Shape) -> tuple[int, int, int]:
        return layout.index.shape[0], layout.block_h, shape[1]

    @staticmethod
    def places_of(layout: Layout, shape: Shape) -> Places:
        first = layout.index.long()[:, None, None] * layout.block_h
        return first + numbers(layout.block_h, first)[:, None], numbers(shape[1], first)

    @classmethod
    def product_of(cls, layout: Layout, grad_output: Tensor, input: Tensor) -> Tensor:
        groups = grad_output.unflatten(1, (-1, layout.block_h))[:, layout.index.long()]
        return torch.einsum("tnh,tw->nhw", groups, input)

    def _limits(self, shape: Shape) -> list[Limit]:
        return [Limit("group", self._bound, shape[0] // self.block_size[0])]

    @classmethod
    def of_mask(cls, mask: Tensor, block_size: int) -> "RowGroups":
        groups = mask.unflatten(0, (-1, block_size)).any(2).any(1)
        return cls(groups.nonzero().squeeze(1), block_size)
