"""Blocks: tiles of a matrix, of one size and on one grid."""

import torch
from torch import Tensor

from ..ops.layout import Layout, Places, Shape
from .lines import numbers
from .selection import Limit, Selection, intern_features


class Blocks(Selection):
    """Blocks of the matrix.

    index: [n, 2] of (block_row, block_col); block_size: int or (bh, bw). values: [n, bh, bw].

    Blocks that reach past the edge are zero-padded in `values`; the padding never trains. Use
    raises ValueError where a block is larger than the matrix.
    """

    __slots__ = ()
    kind = "blocks"
    is_compiled = in_triton = True
    index_columns = 2
    has_padding = True
    has_block_size = True
    _index_shape = "[n, 2] of (block_row, block_col)"

    def __init__(self, index: object, block_size: int | tuple[int, int]):
        self._init(index, as_block_size(block_size))

    @staticmethod
    def shape_of(layout: Layout, shape: Shape) -> tuple[int, int, int]:
        return layout.index.shape[0], layout.block_h, layout.block_w

    @staticmethod
    def places_of(layout: Layout, shape: Shape) -> Places:
        corner = layout.index.long()
        first_row = corner[:, 0, None, None] * layout.block_h
        first_column = corner[:, 1, None, None] * layout.block_w
        inner_row = numbers(layout.block_h, corner)[:, None]
        return first_row + inner_row, first_column + numbers(layout.block_w, corner)

    @classmethod
    def product_of(cls, layout: Layout, grad_output: Tensor, input: Tensor) -> Tensor:
        block_row, block_column = layout.index.long().unbind(1)
        left = _panels(grad_output, block_row, layout.block_h)
        right = _panels(input, block_column, layout.block_w)
        return torch.einsum("tnh,tnw->nhw", left, right)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, block_size={self.block_size})"

    def _check_inside(self, shape: Shape) -> None:
        if len(shape) == 2 and any(block > size for block, size in zip(self.block_size, shape)):
            raise ValueError(
                f"block_size: {self.block_size} is larger than a matrix of shape {tuple(shape)};"
                " its values would hold more padding than the matrix has entries, take"
                " min(block_size, size) in each dimension"
            )
        super()._check_inside(shape)

    def _limits(self, shape: Shape) -> list[Limit]:
        names = ("block_row", "block_col")
        grid = [-(-size // block) for size, block in zip(shape, self.block_size)]
        return [Limit(*limit) for limit in zip(names, self._bound, grid)]

    def nnz(self, shape: Shape) -> int:
        self.check(shape)
        covered = [
            (size - self.index[:, d].long() * block).clamp(max=block)
            for d, (size, block) in enumerate(zip(shape, self.block_size))
        ]
        return int((covered[0] * covered[1]).sum())

    def _restrict(self, dim: int, size: int) -> tuple[Tensor | None, Layout]:
        block = self.block_size[dim]
        used, place = self.index[:, dim].long().unique(return_inverse=True)
        if used.numel() * block >= size:  # all of them: kept as they are, not copied
            return None, self.layout
        features = (used[:, None] * block + numbers(block, used)).reshape(-1)
        index = self.index.clone()
        index[:, dim] = place.to(index.dtype)
        return intern_features(features[features < size]), Layout("blocks", index, *self.block_size)

    @classmethod
    def of_mask(cls, mask: Tensor, block_size: int | tuple[int, int]) -> "Blocks":
        height, width = as_block_size(block_size)
        below, beside = -mask.size(0) % height, -mask.size(1) % width
        padded = torch.nn.functional.pad(mask, (0, beside, 0, below))
        # [block_rows, bh, block_cols, bw]
        tiles = padded.unflatten(1, (-1, width)).unflatten(0, (-1, height))
        return cls(tiles.any(3).any(1).nonzero(), (height, width))


def _panels(operand: Tensor, block: Tensor, size: int) -> Tensor:
    """[T, n, size]: for each of `block`, its features of an operand that is padded to whole
    blocks.
    """
    padded = torch.nn.functional.pad(operand, (0, -operand.size(1) % size))
    if not padded.numel():
        return operand.new_zeros(operand.size(0), len(block), size)
    return padded.unflatten(1, (-1, size))[:, block]


def as_block_size(block_size: object) -> tuple[int, int]:
    """`(height, width)` of an int or a pair; ValueError for anything else."""
    size = tuple(block_size) if isinstance(block_size, (tuple, list)) else (block_size, block_size)
    if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        raise ValueError(
            f"block_size: expected a positive int or a pair of them, got {block_size!r}"
        )
    return size
