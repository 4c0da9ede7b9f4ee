"""Worths: what every unit of every weight is worth, one weight at a time."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch

from .job import Job
from .progress import followed
from .scope import Scope
from .sums import total
from .warn import warn


class Source(Protocol):
    """Where scores come from.

    reduced: they are those of units already. absolute: their sign does not count.
    """

    reduced: bool
    absolute: bool

    def scores(self, last: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, score) of every weight: [rows, columns], or where `reduced` [units]; fp32, or fp64
        of weights in fp64. last: nobody asks for them again, so that none need be held.
        """
        ...


class Facts(NamedTuple):
    """What one pass over the scores tells of a weight's.

    scale: what they are divided by. total, least: of them all, before that.
    """

    scale: float
    total: float
    least: float
    dtype: torch.dtype


@dataclasses.dataclass
class Worths:
    """The scores of one job, to be gone through as often as it takes. label: the score's name."""

    job: Job
    source: Source
    scope: Scope
    label: str

    def matrices(self, last: bool) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, what each entry is worth [rows, columns]). last: not gone through again."""
        for name, score in self._checked(last):
            matrix = score.reshape(self.job.shape(name))
            yield name, matrix.abs() if self.source.absolute else matrix
            del score, matrix  # before the next one is made

    def units(self, last: bool) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, what each unit is worth [units])."""
        for name, score in self._checked(last):
            if self.source.reduced:
                yield name, score.abs() if self.source.absolute else score
            else:
                matrix = score.reshape(self.job.shape(name))
                yield name, self.job.structure.judged(matrix, self.source.absolute)
                del matrix
            del score  # before the next one is made

    def survey(self) -> dict[str, Facts]:
        """{name: facts}, of one pass."""
        facts = {}
        for name, score in self.units(last=False):
            scale = self.scope.scale(score)
            facts[name] = Facts(scale, total(score), float(score.amin()), score.dtype)
            del score
        return facts

    def scaled(self, facts: dict[str, Facts]) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, what each unit is worth), divided by the weight's scale."""
        for name, score in self.units(last=False):
            scale = facts[name].scale
            yield name, score if scale == 1.0 else score / scale
            del score

    def check_for_share(self, name: str, least: float) -> None:
        """Raise ValueError where a share of the sum would mean nothing."""
        if least < 0:
            raise ValueError(
                f"budget: a Share needs scores that are not negative, and {self.label!r} of"
                f" {name!r} has {least:.3g}; use a density, or a score without a sign"
            )

    def _checked(self, last: bool) -> Iterator[tuple[str, torch.Tensor]]:
        scores = self.source.scores(last)
        first = next(scores, None)  # the model has run before the first one comes
        if first is None:
            return
        every = _chained([first], scores)
        del first
        weights = len(self.job.weights)
        is_flat = True
        for name, score in followed(every, "choosing in weights", weights, self.job.shown):
            if score.is_meta:
                raise ValueError(
                    f"score: {self.label!r} of {name!r} is on the meta device and has no numbers;"
                    " load the model first, or draw what trains: score='random'"
                )
            ends = score.aminmax()
            is_flat = is_flat and not any(ends)
            if not all(end.isfinite() for end in ends):
                raise ValueError(
                    f"score: {self.label!r} of {name!r} is not finite everywhere; look for NaN or"
                    " inf in the weights and batches"
                )
            yield name, score
            del score
        if is_flat and last:
            warn(
                f"score: {self.label!r} is 0 for every entry of every target, so what trains is"
                " drawn by seed=; does the loss depend on them (labels that are all ignored)?"
            )


def _chained(firsts: list[tuple], rest: Iterator[tuple]) -> Iterator[tuple[str, torch.Tensor]]:
    """The first one, which is not held any longer, and the others."""
    yield firsts.pop()
    yield from rest
