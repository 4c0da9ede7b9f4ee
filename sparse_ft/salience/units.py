"""Structures: the units of a matrix that train together (rows, columns, blocks, single entries, or
all of it), what each is worth, and the selection that some of them make.
"""

import dataclasses

import torch
import torch.nn.functional as F

from ..plan import ALL
from ..selection import Blocks, Columns, Entries, Rows, Selection

STRUCTURES = ("rows", "columns", "blocks", "entries", "entries_per_row")
KINDS = (*STRUCTURES, "tensors")
COMBINE = ("sum", "abs_of_sum")
Shape = tuple[int, int]
# A share of so many rows or columns, or of more, is a multiple of 8: the products of their
# gradients then start on 16 bytes in 16 bits, which GPUs ask of their fast ones (a GEMM of 41
# columns loads element by element). Of so many that are chosen it is one of 16, at a cost of less
# than 2 %: that is also what compilers ask for.
ROUNDED_FROM, SIXTEEN_FROM = 256, 1024


@dataclasses.dataclass(frozen=True)
class Structure:
    """kind: one of `KINDS`.

    block_size: (height, width), for blocks. combine: how a unit is judged by its entries, "sum"
    or "abs_of_sum". is_rounded: whether a share of its rows or columns is (`rounded`).
    """

    kind: str
    block_size: tuple[int, int] = (64, 64)
    combine: str = "sum"
    is_rounded: bool = True

    @property
    def is_entries(self) -> bool:
        """Whether each entry is a unit of its own."""
        return self.kind in ("entries", "entries_per_row")

    def block(self, shape: Shape) -> tuple[int, int]:
        """(height, width) of the blocks of a matrix of `shape`: cut where it is smaller."""
        return fitted(self.block_size, shape)

    def grid(self, shape: Shape) -> tuple[int, int]:
        """(down, across): how many units a matrix of `shape` has in each direction."""
        rows, columns = shape
        if self.kind == "blocks":
            height, width = self.block(shape)
            return -(-rows // height), -(-columns // width)
        down = 1 if self.kind in ("columns", "tensors") else rows
        across = 1 if self.kind in ("rows", "tensors") else columns
        return down, across

    def count(self, shape: Shape) -> int:
        """How many units a matrix of `shape` has."""
        down, across = self.grid(shape)
        return down * across

    def share(self, shape: Shape, density: float) -> int:
        """How many units of a matrix of `shape` train at a density."""
        number = self.count(shape)
        count = count_of(number, density)
        is_rounded = self.is_rounded and self.kind in ("rows", "columns")
        return rounded(count, number) if is_rounded else count

    def sizes(self, shape: Shape) -> torch.Tensor:
        """int64 [units]: how many entries each has; blocks at a ragged edge have fewer."""
        down, across = self.grid(shape)
        rows, columns = shape
        if self.kind == "blocks":
            height, width = self.block(shape)
            high = (rows - torch.arange(down, device="cpu") * height).clamp(max=height)
            wide = (columns - torch.arange(across, device="cpu") * width).clamp(max=width)
            return (high[:, None] * wide).reshape(-1)
        return torch.full((down * across,), rows * columns // (down * across), device="cpu")

    def judged(self, score: torch.Tensor, absolute: bool) -> torch.Tensor:
        """[units]: what each unit is worth.

        score: [rows, columns]; absolute: its sign does not count.
        """
        if self.is_entries:
            return _size(score, absolute).reshape(-1)
        if self.combine == "abs_of_sum":
            return self.summed(score).reshape(-1).abs_()
        return self.summed(_size(score, absolute)).reshape(-1)

    def summed(self, score: torch.Tensor) -> torch.Tensor:
        """[down, across]: the sum of the entries of each unit, in fp32 at least."""
        wide = torch.promote_types(torch.float32, score.dtype)
        if self.kind == "rows":
            return score.sum(1, keepdim=True, dtype=wide)
        if self.kind == "columns":
            return score.sum(0, keepdim=True, dtype=wide)
        if self.kind == "tensors":
            return score.sum(dtype=wide).reshape(1, 1)
        if self.is_entries:
            return score
        rows, columns = score.shape
        height, width = self.block((rows, columns))
        padded = F.pad(score, (0, -columns % width, 0, -rows % height))
        tiles = padded.unflatten(1, (-1, width)).unflatten(0, (-1, height))
        return tiles.sum((1, 3), dtype=wide)

    def selection(self, chosen: torch.Tensor, shape: Shape) -> Selection | str:
        """What trains, of the sorted numbers of the units that were chosen, for a matrix of
        `shape`.
        """
        if self.kind == "tensors":
            return ALL
        return self._made(chosen, shape).on(shape)

    def _made(self, chosen: torch.Tensor, shape: Shape) -> Selection:
        if self.kind == "rows":
            return Rows(chosen)
        if self.kind == "columns":
            return Columns(chosen)
        if self.is_entries:
            return Entries(chosen)
        across = self.grid(shape)[1]
        places = torch.stack((chosen // across, chosen % across), 1)
        return Blocks(places, self.block(shape))


def fitted(block_size: tuple[int, int], shape: Shape) -> tuple[int, int]:
    """`block_size` (height, width), cut to a matrix of `shape` where it is larger."""
    height, width = block_size
    return min(height, shape[0]), min(width, shape[1])


def count_of(number: int, density: float) -> int:
    """How many of `number` units are about a share `density`: one at least."""
    return max(1, round(number * density))


def rounded(count: int, number: int) -> int:
    """The multiple of 8 (from 1024 on of 16) that is nearest to a share of `count` of `number`.

    All of them stay all, and fewer than 8 what they are; below 256 rows or columns as it is.
    """
    if number < ROUNDED_FROM or count == number or count < 8:
        return count
    step = 16 if count >= SIXTEEN_FROM else 8
    return min((count + step // 2) // step * step, number)


def _size(score: torch.Tensor, absolute: bool) -> torch.Tensor:
    return score.abs() if absolute else score
