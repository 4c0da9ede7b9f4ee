"""What rows and columns share: whole lines of a matrix along one dimension."""

from typing import ClassVar

import torch
from torch import Tensor

from ..ops.layout import Layout, Shape
from .selection import Limit, Selection, intern_features


class Lines(Selection):
    """Whole rows or whole columns."""

    __slots__ = ()
    dim: ClassVar[int]

    def _limits(self, shape: Shape) -> list[Limit]:
        return [Limit(self.kind.removesuffix("s"), self._bound, shape[self.dim])]

    def _restrict(self, dim: int, size: int) -> tuple[Tensor | None, Layout]:
        if dim != self.dim:
            return None, self.layout
        features = intern_features(self.index.long())
        all_of_them = torch.arange(len(self), dtype=torch.int32, device=self.index.device)
        return features, Layout(self.kind, all_of_them)

    @classmethod
    def of_mask(cls, mask: Tensor, block_size: object) -> "Lines":
        return cls(mask.any(1 - cls.dim).nonzero().squeeze(1))


def numbers(count: int, like: Tensor) -> Tensor:
    """0, 1, … [count], on the device of `like`."""
    return torch.arange(count, device=like.device)
