"""SpIEL: entries that moved little make room for those with the largest gradients."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...plan import Plan
from ...reselection import Seed, reselect
from ...salience import select
from ...salience.best import best
from ...schedules import Candidates
from ...schedules.reselecting import AMOUNTS
from ...selection import Entries
from ..process import Process
from ..recipe import recipe
from ..settings import check_count
from ..values import cycled, moved, selection_of, values_of


class Spiel(Process):
    """Exchanges a share of the entries every few steps; what `spiel` returns."""

    def __init__(
        self, plan: Plan, batches: Any, loss: Any, every: int, collect: int, rate: float, total: int
    ):
        super().__init__(plan, origin=True)
        check_count("every", every)
        check_count("total", total)
        if not 0 < collect < every:
            raise ValueError(f"collect: expected less than every={every}, got {collect!r}")
        if not 0 < rate <= 1:
            raise ValueError(f"rate: expected a share in (0, 1], got {rate!r}")
        self._names = list(plan)
        self._batches, self._loss = cycled(batches), loss
        self._every, self._collect, self._rate, self._total = every, collect, rate, total
        self._candidates: Candidates | None = None

    def share(self) -> float:
        """The share of the entries that leaves at this step."""
        done = min(1.0, self.steps / self._total)
        return self._rate * AMOUNTS["linear"](done)

    def _turn(self, model: nn.Module) -> Any:
        if self._candidates is not None:
            self._candidates.step()
        at = self.steps % self._every
        if at == self._every - self._collect and self.steps + self._collect <= self._total:
            self._look(model)
        elif at == 0 and self._candidates is not None:
            return self._exchange(model)
        return None

    def _look(self, model: nn.Module) -> None:
        """Find the entries that could join, and collect their gradients from now on."""
        sizes = [len(selection_of(model, name)) for name in self._names]
        most = max(1, round(self._rate * max(sizes)))
        self._candidates = Candidates(model, most)
        self._candidates.find([next(self._batches)], self._loss, accumulate="device")

    def _exchange(self, model: nn.Module) -> Any:
        found, self._candidates = self._candidates, None
        assert found is not None
        seeds = found.seeds()
        plan = {}
        for name, values in values_of(model, found.entries).items():
            old = selection_of(model, name).index.long()
            new = found.entries[name].index.long()
            count = min(round(self.share() * old.numel()), new.numel())
            if count:
                kept = best(moved(values).abs(), old.numel() - count, seed=self.steps)
                joins = best(found.sums[name].abs(), count, seed=self.steps)
                index = torch.cat((old[kept], new[joins])).sort().values
                plan[name] = Entries(index)
        found.remove()
        return self._reselect(model, plan, {name: seeds[name] for name in plan})

    def _reselect(
        self, model: nn.Module, plan: Mapping[str, Entries], seeds: dict[str, Seed]
    ) -> Any:
        if not plan:
            return None
        return reselect(model, self._optimizer, plan, dropped="restore", seeds=seeds)


@recipe(
    "spiel", "SpIEL, Ansell et al. 2024, arXiv:2401.16405",
    {"density": 0.01, "every": 20, "collect": 5, "rate": 0.2, "total": 1000},
    follows="both", decay_to="origin",
)  # fmt: skip
def spiel(
    model: nn.Module,
    batches: Any,
    *,
    every: int = 20,
    collect: int = 5,
    rate: float = 0.2,
    total: int = 1000,
    density: float | None = None,
    budget: Any = None,
    targets: Any = None,
    loss: Any = None,
    seed: int = 0,
) -> Spiel:
    """entries of each weight, at random first; the least moved make way for the largest Σ g

    Every `every` steps the share `rate`, falling linearly to 0 at `total` steps, of the entries of
    each weight with the smallest |W − W_0| leaves, back to W_0, and those with the largest |Σ g| of
    the last `collect` steps join. Candidates are looked for by one of `batches` before that. Those
    that join begin with the moments and the age of what was collected; every entry has its own age.
    Values are fp32 over bf16 weights, where its code loses small differences. Weight decay pulls to
    W_0. Returns a process.
    """
    amount = {"budget": budget} if density is None else {"density": density}
    plan = select(model, structure="entries", score="random", targets=targets, seed=seed, **amount)
    return Spiel(plan, batches, loss, every, collect, rate, total)
