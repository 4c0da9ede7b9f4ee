"""Scope: which weights share a budget, and what each of them gets at least and at most."""

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping

import torch

from ..families import families
from .sums import total_of_sizes, total_of_squares
from .units import Shape

SCOPES = ("layer", "tensor", "group", "global")
NORMALIZE = ("mean", "norm", "max")
Bound = float | int | None


@dataclasses.dataclass(frozen=True)
class Scope:
    """kind: "tensor" (or "layer", the same): each weight on its own; "group": the weights of a
    group share their budget; "global": all do. groups: {label: glob pattern(s)}; None for the
    weights whose names differ in the number of their layer only.

    floor, cap: what each weight gets at least and at most, a share (float) or a number of units
    (int). normalize: None, or what each weight's scores are divided by first: their "mean", "norm"
    or "max".
    """

    kind: str = "layer"
    groups: Mapping[str, str | Iterable[str]] | None = None
    floor: Bound = None
    cap: Bound = None
    normalize: str | None = None

    def pools(self, shapes: Mapping[str, Shape]) -> list[list[str]]:
        """The names of the weights that share a budget, budget by budget."""
        if self.kind == "global":
            return [list(shapes)]
        if self.kind != "group":
            return [[name] for name in shapes]
        if self.groups is None:
            return [family.names for family in families((name, None) for name in shapes)]
        return list(_grouped(self.groups, list(shapes)).values())

    def floor_of(self, units: int) -> int:
        """How many of a weight's units are its own whatever their score."""
        return 0 if self.floor is None else min(_bound(self.floor, units), units)

    def cap_of(self, units: int) -> int:
        """How many of a weight's units may train."""
        return units if self.cap is None else max(1, min(_bound(self.cap, units), units))

    def scale(self, score: torch.Tensor) -> float:
        """What the scores of one weight are divided by; 1 where that would be nothing."""
        if self.normalize is None or not score.numel():
            return 1.0
        if self.normalize == "max":
            return max(float(end) for end in (score.amax(), -score.amin())) or 1.0
        if self.normalize == "norm":
            return total_of_squares(score) ** 0.5 or 1.0
        return total_of_sizes(score) / score.numel() or 1.0


def _bound(bound: float | int, units: int) -> int:
    return bound if isinstance(bound, int) else round(bound * units)


def _grouped(groups: Mapping[str, str | Iterable[str]], names: list[str]) -> dict[str, list[str]]:
    """{label: names}. Raises ValueError for a name that is in no group or in two."""
    found: dict[str, list[str]] = {label: [] for label in groups}
    for name in names:
        labels = [label for label, patterns in groups.items() if _matches(name, patterns)]
        if len(labels) != 1:
            where = f"in {labels}" if labels else "in no group"
            raise ValueError(f"groups: {name!r} is {where}; each weight must be in one")
        found[labels[0]].append(name)
    return {label: members for label, members in found.items() if members}


def _matches(name: str, patterns: str | Iterable[str]) -> bool:
    every = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in every)
