"""choose: from the scores of all weights and a budget to what trains of each."""

import dataclasses
import zlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch

from ..selection import Entries, Selection
from . import threshold
from .best import best
from .budgets import Allowance, Amount
from .job import Job
from .progress import followed
from .scope import Scope
from .small import pick_small

NONE_CHOSEN = "none of it is among the best"


class Source(Protocol):
    """Where scores come from. reduced: they are those of units already. absolute: their sign does
    not count.
    """

    reduced: bool
    absolute: bool

    def scores(self, last: bool = True) -> Iterator[tuple[str, torch.Tensor]]: ...


class Facts(NamedTuple):
    """What one pass over the scores tells of a weight's."""

    scale: float
    total: float
    least: float
    dtype: torch.dtype


@dataclasses.dataclass
class Chooser:
    """One job's scores, ready to be gone through as often as it takes."""

    job: Job
    source: Source
    scope: Scope
    label: str  # the score's, for messages

    def patterned(self, budget) -> dict[str, Selection | str]:
        """What a budget chooses that picks in each matrix by a pattern."""
        chosen = {}
        for name, score in self._checked(last=True):
            shape = self.job.shape(name)
            matrix = score.abs() if self.source.absolute else score
            flat = budget.pick(matrix.reshape(shape), self._seed(name))
            chosen[name] = self._placed(name, Entries(flat).on(shape))
        return chosen

    def amount(self, budget: Amount, last: bool = True) -> dict[str, Selection | str]:
        """What an amount chooses. A weight of which nothing is chosen is missing in it."""
        shapes = {name: self.job.shape(name) for name in self.job.weights}
        pools = self.scope.pools(shapes)
        if all(len(pool) == 1 for pool in pools) and self.scope.floor is self.scope.cap is None:
            return self._one_by_one(budget, shapes, last)
        if self.job.structure.is_entries:
            return self._entries_of_all(budget, shapes, pools, last)
        return self._units_of_all(budget, shapes, pools, last)

    def worths(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, what each of its units is worth), for the last time."""
        return self._units(last=True)

    def _one_by_one(self, budget: Amount, shapes: dict, last: bool) -> dict:
        """Every weight by itself: one score at a time."""
        chosen = {}
        for name, score in self._units(last):
            allowance = budget.allowance([shapes[name]], self.job.structure)
            count = self._count(allowance, name, score)
            units = best(score, count, self._seed(name))
            chosen[name] = self._selection(name, units)
        return chosen

    def _count(self, allowance: Allowance, name: str, score: torch.Tensor) -> int:
        """How many units of one weight that is by itself."""
        if allowance.units is not None:
            return allowance.units
        if allowance.entries is not None:
            entries = self.job.weights[name].numel()
            return max(1, min(score.numel(), round(allowance.entries * score.numel() / entries)))
        self._check_for_share(name, float(score.amin()))
        ordered = score.double().sort(descending=True).values.cumsum(0)
        enough = torch.searchsorted(ordered, allowance.share * ordered[-1:]).item() + 1
        return min(enough, max(1, int((score > 0).sum())))

    def _entries_of_all(self, budget: Amount, shapes: dict, pools: list, last: bool) -> dict:
        """Single entries of weights that share their budgets: passes over the scores, no
        concatenation.
        """
        facts = self._survey()
        dtype = torch.float64
        if all(fact.dtype != torch.float64 for fact in facts.values()):
            dtype = torch.float32
        wanted = self._wanted(budget, shapes, pools, facts, dtype)
        searches = {}
        for pool, want in zip(pools, wanted):
            floors, caps = self._bounds(pool, shapes)
            want = self._within(want, floors, caps)
            search = threshold.BestOfAll(dtype, want, floors, caps)
            searches |= dict.fromkeys(pool, search)
        threshold.run(searches, lambda: self._scaled(facts), dtype)
        chosen = {}
        shares = {}
        for pool in pools:
            shares |= searches[pool[0]].shares(self.job.seed)
        for name, score in self._units(last):
            if shares[name]:
                units = best(score, shares[name], self._seed(name))
                chosen[name] = self._selection(name, units)
        return chosen

    def _wanted(
        self, budget: Amount, shapes: dict, pools: list, facts: dict, dtype: torch.dtype
    ) -> list[int]:
        """How many entries each pool may train."""
        allowances = [
            budget.allowance([shapes[name] for name in pool], self.job.structure) for pool in pools
        ]
        if allowances[0].share is None:
            return [a.units if a.entries is None else a.entries for a in allowances]
        searches = {}
        for pool, allowance in zip(pools, allowances):
            for name in pool:
                self._check_for_share(name, facts[name].least)
            total = sum(facts[name].total / facts[name].scale for name in pool)
            search = threshold.LargestSum(dtype, allowance.share * total)
            searches |= dict.fromkeys(pool, search)
        threshold.run(searches, lambda: self._scaled(facts), dtype)
        return [max(1, searches[pool[0]].number) for pool in pools]

    def _units_of_all(self, budget: Amount, shapes: dict, pools: list, last: bool) -> dict:
        """Rows, columns, blocks or tensors of weights that share their budgets: few enough to put
        together.
        """
        scores = {}
        for name, score in self._units(last):
            scores[name] = score.double().cpu() / self.scope.scale(score)
        chosen = {}
        for pool in pools:
            allowance = budget.allowance([shapes[name] for name in pool], self.job.structure)
            if allowance.share is not None:
                for name in pool:
                    self._check_for_share(name, float(scores[name].amin()))
            floors, caps = self._bounds(pool, shapes)
            if allowance.units is not None:
                self._within(allowance.units, floors, caps)
            sizes = {name: self.job.structure.sizes(shapes[name]) for name in pool}
            mine = {name: scores[name] for name in pool}
            picked = pick_small(mine, sizes, allowance, floors, caps, self.job.seed)
            for name, units in picked.items():
                chosen[name] = self._selection(name, units)
        return {name: chosen[name] for name in shapes if name in chosen}

    def _bounds(self, pool: list[str], shapes: dict) -> tuple[dict[str, int], dict[str, int]]:
        """({name: least}, {name: most}) units of each weight."""
        counts = {name: self.job.structure.count(shapes[name]) for name in pool}
        floors = {name: self.scope.floor_of(count) for name, count in counts.items()}
        caps = {name: self.scope.cap_of(count) for name, count in counts.items()}
        return floors, {name: max(caps[name], floors[name]) for name in pool}

    def _within(self, want: int, floors: dict[str, int], caps: dict[str, int]) -> int:
        least = sum(floors.values())
        if want < least:
            raise ValueError(
                f"floor: {self.scope.floor!r} asks for {least:,} units in all, and the budget is"
                f" {want:,}; lower it, or raise the budget"
            )
        return min(want, sum(caps.values()))

    def _survey(self) -> dict[str, Facts]:
        """{name: facts}, of one pass over the scores."""
        facts = {}
        for name, score in self._units(last=False):
            total = float(score.sum(dtype=torch.float64))
            scale = self.scope.scale(score)
            facts[name] = Facts(scale, total, float(score.amin()), score.dtype)
        return facts

    def _scaled(self, facts: dict[str, Facts]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, score in self._units(last=False):
            scale = facts[name].scale
            yield name, score if scale == 1.0 else score / scale

    def _units(self, last: bool) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, what each of its units is worth)."""
        for name, score in self._checked(last):
            if not self.source.reduced:
                matrix = score.reshape(self.job.shape(name))
                yield name, self.job.structure.judged(matrix, self.source.absolute)
            else:
                yield name, score.abs() if self.source.absolute else score

    def _checked(self, last: bool) -> Iterator[tuple[str, torch.Tensor]]:
        scores = self.source.scores(last)
        first = next(scores, None)  # the model has run before the first one comes
        if first is None:
            return
        every = _chained(first, scores)
        weights = len(self.job.weights)
        for name, score in followed(every, "choosing in weights", weights, self.job.shown):
            if not score.isfinite().all():
                raise ValueError(
                    f"score: {self.label!r} of {name!r} is not finite everywhere; look for NaN or"
                    " inf in the weights and batches"
                )
            yield name, score

    def _check_for_share(self, name: str, least: float) -> None:
        if least < 0:
            raise ValueError(
                f"budget: a Share needs scores that are not negative, and {self.label!r} of"
                f" {name!r} has {least:.3g}; use a density, or a score without a sign"
            )

    def _selection(self, name: str, units: torch.Tensor) -> Selection | str:
        selection = self.job.structure.selection(units, self.job.shape(name))
        return self._placed(name, selection)

    def _placed(self, name: str, selection: Selection | str) -> Selection | str:
        if isinstance(selection, str):
            return selection
        return selection.to(self.job.weights[name].device)

    def _seed(self, name: str) -> int:
        """The seed that decides between equal scores of a weight; 32 bits, as generators use."""
        return zlib.crc32(f"{self.job.seed} {name}".encode())


def _chained(first: tuple, rest: Iterator[tuple]) -> Iterator[tuple[str, torch.Tensor]]:
    yield first
    yield from rest
