"""Budgets that are a number: how many units of a weight, or of several that share a budget."""

import dataclasses
from typing import NamedTuple, Protocol

from ..units import Shape, Structure, count_of


class Allowance(NamedTuple):
    """What may train: so many units, or so many entries, or the best that make up this share of the
    sum of all scores. The other two are None.
    """

    units: int | None = None
    entries: int | None = None
    share: float | None = None

    @property
    def single_entries(self) -> int | None:
        """How many, where each unit is an entry."""
        return self.units if self.entries is None else self.entries

    @property
    def known_share(self) -> float:
        """The share, for who has seen that it is neither of the others."""
        if self.share is None:
            raise ValueError(f"budget: expected a share, got {self!r}")
        return self.share


class Amount(Protocol):
    """A budget that is told by the shapes of the weights that share it."""

    def allowance(self, shapes: list[Shape], structure: Structure) -> Allowance:
        """What may train of weights whose matrices have these shapes (rows, columns)."""
        ...


@dataclasses.dataclass(frozen=True)
class Density:
    """A share of the entries, in (0, 1]; of a weight's rows or columns see `units.rounded`."""

    density: float

    def allowance(self, shapes: list[Shape], structure: Structure) -> Allowance:
        if len(shapes) == 1:
            return Allowance(units=structure.share(shapes[0], self.density))
        entries = sum(rows * columns for rows, columns in shapes)
        return Allowance(entries=count_of(entries, self.density))


@dataclasses.dataclass(frozen=True)
class Count:
    """So many rows, columns, blocks, entries or tensors."""

    count: int

    def allowance(self, shapes: list[Shape], structure: Structure) -> Allowance:
        return Allowance(units=self.count)


@dataclasses.dataclass(frozen=True)
class LikeLora:
    """As many entries as LoRA of `rank` has: (rows + columns) · rank of every weight (LIFT).

    Raises ValueError for a rank below 1.
    """

    rank: int

    def __post_init__(self) -> None:
        if not (isinstance(self.rank, int) and self.rank > 0):
            raise ValueError(f"rank: expected a positive int, got {self.rank!r}")

    def allowance(self, shapes: list[Shape], structure: Structure) -> Allowance:
        return Allowance(entries=sum((rows + columns) * self.rank for rows, columns in shapes))


@dataclasses.dataclass(frozen=True)
class Share:
    """The fewest of the best whose scores add up to a share of the sum of all, in (0, 1] (ESFT's
    rule for experts). Scores must not be negative. Raises ValueError for another share.
    """

    share: float

    def __post_init__(self) -> None:
        if not (isinstance(self.share, (int, float)) and 0 < self.share <= 1):
            raise ValueError(f"share: expected a number in (0, 1], got {self.share!r}")

    def allowance(self, shapes: list[Shape], structure: Structure) -> Allowance:
        return Allowance(share=self.share)
