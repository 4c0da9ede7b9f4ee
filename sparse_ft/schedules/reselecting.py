"""Once and Every: a rule says what trains from now on, `sft.reselect` has it so."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..reselection import ReselectReport, check_settings, reselect
from ..selection import Selection
from .schedule import Schedule, check_count

Rule = Callable[..., Mapping[str, Selection | str]]
Amount = Callable[[float], float]
AMOUNTS: dict[str, Amount] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "cubic": lambda done: (1 - done) ** 3,
}


class Reselecting(Schedule):
    """Asks `rule` for a plan, and hands it to `sft.reselect` with these settings.

    seeds: a callable that gives `seeds` of `sft.reselect`, such as `Candidates.seeds`. The other
    settings are `dropped`, `age` and `process_group`.
    """

    def __init__(
        self, rule: Rule, seeds: Callable[[], Mapping[str, Any]] | None = None, **settings: Any
    ):
        super().__init__()
        if not callable(rule):
            raise TypeError(f"rule: expected a callable that gives a plan, got {rule!r}")
        if seeds is not None and not callable(seeds):
            raise TypeError(f"seeds: expected a callable such as Candidates.seeds, got {seeds!r}")
        check_settings(settings)
        self._rule, self._seeds, self._settings = rule, seeds, settings

    def _ask(self, model: nn.Module, *more: float) -> ReselectReport:
        plan = self._rule(model, *more)
        seeds = None if self._seeds is None else self._seeds()
        return reselect(model, self._optimizer, plan, seeds=seeds, **self._settings)


class Once(Reselecting):
    """After `after` steps, the selections that `rule(model)` gives train.

        schedule = sft.Once(100, lambda model: sft.select(model, density=0.01, batches=batches))
        schedule.attach(model, optimizer)

    A warm-up of other entries, or of a head, that a choice by gradients can build on (SMT, RoSA).
    Settings as in `sft.reselect`. `step()` returns its report, None where it is not yet time.
    Raises ValueError or TypeError that names the argument.
    """

    def __init__(self, after: int, rule: Rule, **settings: Any):
        check_count("after", after)
        super().__init__(rule, **settings)
        self._after = after

    def _turn(self, model: nn.Module) -> ReselectReport | None:
        return self._ask(model) if self.steps == self._after else None


class Every(Reselecting):
    """Every `n` steps, the selections that `rule(model)` gives train.

    amount: how much of a change the rule is to make, "linear", "cosine" or "cubic" from 1 down to 0
    over `total` steps, or a callable of the share of them that is done; `rule(model, amount)` is
    asked then, until `total` steps are done (SpIEL, SNELLA, RigL). total: without an amount, the
    last step that may change anything; None: there is no last one. Settings as in `sft.reselect`.
    `step()` returns its report, None where it is not time.

    Raises ValueError or TypeError that names the argument.
    """

    def __init__(
        self,
        n: int,
        rule: Rule,
        amount: str | Amount | None = None,
        total: int | None = None,
        **settings: Any,
    ):
        check_count("n", n)
        if total is not None:
            check_count("total", total)
        if isinstance(amount, str) and amount not in AMOUNTS:
            known = " or ".join(map(repr, AMOUNTS))
            raise ValueError(f"amount: expected {known} or a callable, got {amount!r}")
        if amount is not None and total is None:
            raise ValueError(f"total: amount={amount!r} is spread over so many steps, got None")
        super().__init__(rule, **settings)
        self._every, self._total = n, total
        self._amount = AMOUNTS[amount] if isinstance(amount, str) else amount

    def _turn(self, model: nn.Module) -> ReselectReport | None:
        is_over = self._total is not None and self.steps > self._total
        if is_over or self.steps % self._every:
            return None
        if self._amount is None or self._total is None:
            return self._ask(model)
        return self._ask(model, self._amount(self.steps / self._total))
