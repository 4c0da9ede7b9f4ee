"""Budgets that are a pattern: single entries, as many in each row or in each run of a row."""

import dataclasses

import torch
import torch.nn.functional as F

from ..best import best_per_row
from ..units import count_of


@dataclasses.dataclass(frozen=True)
class PerRow:
    """The `count` best entries of each row, all of them in a row that has no more (GPS, NeuroAda).

    Raises ValueError for a count below 1.
    """

    count: int

    def __post_init__(self) -> None:
        if not (isinstance(self.count, int) and self.count > 0):
            raise ValueError(f"count: expected a positive int, got {self.count!r}")

    def pick(self, score: torch.Tensor, seed: int) -> torch.Tensor:
        """int64, ascending flat positions. score: [rows, columns]."""
        return best_per_row(score, self.count, seed)


@dataclasses.dataclass(frozen=True)
class DensityPerRow:
    """A share of each row, one entry at least: the structure "entries_per_row"."""

    density: float

    def pick(self, score: torch.Tensor, seed: int) -> torch.Tensor:
        """int64, ascending flat positions. score: [rows, columns]."""
        return best_per_row(score, count_of(score.size(1), self.density), seed)


@dataclasses.dataclass(frozen=True)
class NM:
    """The `count` best of every `of` neighbours in a row, such as 2:4.

    A row's last ones, where `of` does not divide it, give as many if they are as many.

    Raises ValueError unless 0 < count <= of.
    """

    count: int
    of: int

    def __post_init__(self) -> None:
        sizes = self.count, self.of
        if not all(isinstance(n, int) for n in sizes) or not 0 < self.count <= self.of:
            raise ValueError(f"NM: expected ints with 0 < n <= m, got {self.count!r}:{self.of!r}")

    def pick(self, score: torch.Tensor, seed: int) -> torch.Tensor:
        """int64, ascending flat positions. score: [rows, columns]."""
        rows, columns = score.shape
        missing = -columns % self.of
        padded = F.pad(score, (0, missing), value=float("-inf"))
        flat = best_per_row(padded.view(-1, self.of), self.count, seed)
        row = flat // padded.size(1)
        column = flat % padded.size(1)
        inside = column < columns
        return row[inside] * columns + column[inside]
