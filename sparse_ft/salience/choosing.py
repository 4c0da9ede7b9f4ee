"""Chooser: from the scores of all weights and a budget to what trains of each."""

import zlib
from collections.abc import Iterator
from typing import Any

import torch

from ..selection import Entries, Selection
from . import threshold
from .best import best
from .budgets import Allowance, Amount
from .job import Job
from .scope import Scope
from .small import pick_small
from .units import Shape
from .warn import warn
from .worths import Facts, Source, Worths

NONE_CHOSEN = "none of it is among the best"
NEARLY = 0.9  # of a budget: less than rounding makes of it
Chosen = dict[str, Selection | str]


class Chooser:
    """What budgets choose by. label: the score's name, for messages."""

    def __init__(self, job: Job, source: Source, scope: Scope, label: str):
        self.job, self._scope = job, scope
        self._worths = Worths(job, source, scope, label)
        self._shapes = {name: job.shape(name) for name in job.weights}

    def worths(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, what each of its units is worth), for the last time."""
        return self._worths.units(last=True)

    def patterned(self, budget: Any) -> Chosen:
        """What a budget chooses that picks in each matrix by a pattern."""
        chosen = {}
        for name, matrix in self._worths.matrices(last=True):
            flat = budget.pick(matrix, self._seed(name))
            chosen[name] = self._placed(name, Entries(flat).on(self._shapes[name]))
        return chosen

    def amount(self, budget: Amount, last: bool = True) -> Chosen:
        """What an amount chooses; a weight of which nothing is chosen is missing in it.

        last: scores need not be held for another call.
        """
        pools = self._scope.pools(self._shapes)
        is_alone = all(len(pool) == 1 for pool in pools)
        if is_alone and self._scope.floor is self._scope.cap is None:
            return self._one_by_one(budget, last)
        if self.job.structure.is_entries:
            return self._entries_of_all(budget, pools, last)
        return self._units_of_all(budget, pools, last)

    def _one_by_one(self, budget: Amount, last: bool) -> Chosen:
        """Every weight by itself: one score at a time."""
        chosen = {}
        for name, score in self._worths.units(last):
            allowance = budget.allowance([self._shapes[name]], self.job.structure)
            count = self._count(allowance, name, score)
            units = best(score, count, self._seed(name))
            del score  # before the next one is made
            chosen[name] = self._selection(name, units)
        return chosen

    def _count(self, allowance: Allowance, name: str, score: torch.Tensor) -> int:
        """How many units of one weight that is by itself."""
        if allowance.units is not None:
            return allowance.units
        if allowance.entries is not None:
            rows, columns = self._shapes[name]
            entries = rows * columns
            units = round(allowance.entries * score.numel() / entries)
            return max(1, min(score.numel(), units))
        self._worths.check_for_share(name, float(score.amin()))
        reached = score.double().sort(descending=True).values.cumsum(0)
        enough = int(torch.searchsorted(reached, allowance.known_share * reached[-1:])) + 1
        return min(enough, max(1, int((score > 0).sum())))

    def _entries_of_all(self, budget: Amount, pools: list[list[str]], last: bool) -> Chosen:
        """Single entries of weights that share their budgets.

        Passes over the scores, which are never put together.
        """
        facts = self._worths.survey()
        is_double = any(fact.dtype == torch.float64 for fact in facts.values())
        dtype = torch.float64 if is_double else torch.float32
        searches: dict[str, Any] = {}
        for pool, want in zip(pools, self._wanted(budget, pools, facts, dtype)):
            floors, caps = self._bounds(pool)
            most = self._within(want, floors, caps, last)
            search = threshold.BestOfAll(dtype, most, floors, caps)
            searches |= dict.fromkeys(pool, search)
        threshold.run(searches, lambda: self._worths.scaled(facts), dtype)
        shares: dict[str, int] = {}
        for pool in pools:
            shares |= searches[pool[0]].shares(self.job.seed)
        chosen = {}
        for name, score in self._worths.units(last):
            if shares[name]:
                units = best(score, shares[name], self._seed(name))
                chosen[name] = self._selection(name, units)
            del score
        return chosen

    def _wanted(
        self, budget: Amount, pools: list[list[str]], facts: dict[str, Facts], dtype: torch.dtype
    ) -> list[int]:
        """How many entries each pool may train."""
        allowances = [self._allowance(budget, pool) for pool in pools]
        numbers = [allowance.single_entries for allowance in allowances]
        known = [number for number in numbers if number is not None]
        if len(known) == len(pools):
            return known
        searches: dict[str, Any] = {}
        for pool, allowance in zip(pools, allowances):
            for name in pool:
                self._worths.check_for_share(name, facts[name].least)
            total = sum(facts[name].total / facts[name].scale for name in pool)
            search = threshold.LargestSum(dtype, allowance.known_share * total)
            searches |= dict.fromkeys(pool, search)
        threshold.run(searches, lambda: self._worths.scaled(facts), dtype)
        return [max(1, searches[pool[0]].number) for pool in pools]

    def _units_of_all(self, budget: Amount, pools: list[list[str]], last: bool) -> Chosen:
        """Rows, columns, blocks or tensors of weights that share their budgets.

        They are few enough to put together.
        """
        scores = {}
        for name, score in self._worths.units(last):
            scores[name] = score.double().cpu() / self._scope.scale(score)
        chosen = {}
        for pool in pools:
            allowance = self._allowance(budget, pool)
            if allowance.share is not None:
                for name in pool:
                    self._worths.check_for_share(name, float(scores[name].amin()))
            floors, caps = self._bounds(pool)
            if allowance.units is not None:
                self._within(allowance.units, floors, caps, last)
            sizes = {name: self.job.structure.sizes(self._shapes[name]) for name in pool}
            if allowance.entries is not None and last:
                entries = [caps[name] * sizes[name].double().mean() for name in pool]
                self._warn_of_cap(int(sum(entries)), allowance.entries, "entries")
            mine = {name: scores[name] for name in pool}
            picked = pick_small(mine, sizes, allowance, floors, caps, self.job.seed)
            for name, units in picked.items():
                chosen[name] = self._selection(name, units)
        return {name: chosen[name] for name in self._shapes if name in chosen}

    def _allowance(self, budget: Amount, pool: list[str]) -> Allowance:
        shapes: list[Shape] = [self._shapes[name] for name in pool]
        return budget.allowance(shapes, self.job.structure)

    def _bounds(self, pool: list[str]) -> tuple[dict[str, int], dict[str, int]]:
        """({name: least}, {name: most}) units of each weight."""
        counts = {name: self.job.structure.count(self._shapes[name]) for name in pool}
        floors = {name: self._scope.floor_of(count) for name, count in counts.items()}
        caps = {name: self._scope.cap_of(count) for name, count in counts.items()}
        return floors, {name: max(caps[name], floors[name]) for name in pool}

    def _within(self, want: int, floors: dict[str, int], caps: dict[str, int], last: bool) -> int:
        """How many units of what is wanted may be chosen; warns where that is much less."""
        least, most = sum(floors.values()), sum(caps.values())
        if want < least:
            raise ValueError(
                f"floor: {self._scope.floor!r} asks for {least:,} units in all, and the budget is"
                f" {want:,}; lower it, or raise the budget"
            )
        if last:
            self._warn_of_cap(most, want, "units")
        return min(want, most)

    def _warn_of_cap(self, most: int, want: int, what: str) -> None:
        """Warn where caps keep a budget from being spent."""
        if most < NEARLY * want:
            warn(
                f"cap: {self._scope.cap!r} of each weight is {most:,} {what} in all, and the budget"
                f" is {want:,}, so fewer train than were asked for; raise it, or lower the budget"
            )

    def _selection(self, name: str, units: torch.Tensor) -> Selection | str:
        selection = self.job.structure.selection(units, self._shapes[name])
        return self._placed(name, selection)

    def _placed(self, name: str, selection: Selection | str) -> Selection | str:
        if isinstance(selection, str):
            return selection
        return selection.to(self.job.weights[name].device)

    def _seed(self, name: str) -> int:
        """The seed that decides between equal scores of a weight; 32 bits, as generators use."""
        return zlib.crc32(f"{self.job.seed} {name}".encode())
