"""The arguments of `select`, checked before anything is run; each error names one and the way
out.
"""

import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from ..messages import described, did_you_mean
from ..nn.foreign import is_sharded_tensor, why_not
from .budgets import Count, Density, DensityPerRow
from .losses import check_batches
from .scope import NORMALIZE, SCOPES
from .units import COMBINE, KINDS
from .whole_units import UNIT_KINDS

ACCUMULATE = ("device", "cpu", "passes")


def one_of(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise ValueError unless `value` is one of the `choices` of an argument."""
    choices = tuple(choices)
    if value in choices:
        return
    named = [choice for choice in choices if choice]
    meant = did_you_mean(value, named) if isinstance(value, str) else ""
    near = meant if "did you mean" in meant else ""
    raise ValueError(f"{name}: expected {' or '.join(map(repr, choices))}, got {value!r}{near}")


def check_choices(structure: str | None, scope: str | None, **others: Any) -> None:
    """The arguments that are one of a few words."""
    one_of("structure", structure, (*KINDS, *UNIT_KINDS, None))
    one_of("scope", scope, (*SCOPES, None))
    one_of("combine", others["combine"], COMBINE)
    one_of("normalize", others["normalize"], (*NORMALIZE, None))
    one_of("accumulate", others["accumulate"], ACCUMULATE)
    for name in ("passes", "max_batches"):
        value = others[name]
        is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not is_count and not (name == "max_batches" and value is None):
            raise ValueError(f"{name}: expected a positive int, got {value!r}")
    floor, cap = others["floor"], others["cap"]
    for name, bound in (("floor", floor), ("cap", cap)):
        check_bound(name, bound)
    if cap == 0:
        raise ValueError("cap: 0 lets nothing train; targets= says which weights are looked at")
    if floor is not None and type(floor) is type(cap) and floor > cap:
        raise ValueError(f"floor: {floor!r} is more than cap={cap!r}, what a weight gets at most")


def check_names(targets: Any, groups: Any) -> None:
    """Raise TypeError unless these are what may name parameters."""
    if targets is not None and not isinstance(targets, Iterable):
        raise TypeError(f"targets: expected glob pattern(s), got {described(targets)}")
    if groups is not None and not isinstance(groups, Mapping):
        raise TypeError(
            f"groups: expected a mapping {{label: glob pattern(s)}}, got {described(groups)}"
        )


def check_seed(seed: Any) -> int:
    """The seed as an int. Raises TypeError for what is none."""
    if not isinstance(seed, numbers.Integral) or isinstance(seed, bool):
        raise TypeError(f"seed: expected an int, got {seed!r}")
    return int(seed)


def check_bound(name: str, bound: Any) -> None:
    """Raise ValueError unless `bound` is None, a share in [0, 1] or a number of units."""
    is_share = isinstance(bound, float) and 0 <= bound <= 1
    is_count = isinstance(bound, int) and not isinstance(bound, bool) and bound >= 0
    if bound is not None and not is_share and not is_count:
        raise ValueError(
            f"{name}: expected a share in [0, 1], a number of units (int) or None, got {bound!r}"
        )


def as_budget(density: Any, budget: Any, structure: str) -> Any:
    """The budget that `density` or `budget` means. Raises ValueError for both and for neither."""
    if density is not None and budget is not None:
        raise ValueError(f"density: {density!r} and budget={budget!r} were given; pass one")
    given, name = (budget, "budget") if budget is not None else (density, "density")
    if isinstance(given, type):
        raise TypeError(f"{name}: got the class {given.__name__}; make one of it")
    is_number = isinstance(given, numbers.Real) and not isinstance(given, bool)  # numpy's, too
    if name == "budget" and not isinstance(given, numbers.Real):
        return given
    if name == "budget" and is_number and isinstance(given, numbers.Integral):
        if given < 1:
            raise ValueError(f"budget: expected a positive number of units, got {given!r}")
        return Count(int(given))
    if not (is_number and 0 < given <= 1):
        percent = ""
        if is_number and 1 < given <= 100:
            percent = f"; {given:g} % is {given / 100:g}"
        elif given is None:
            percent = "; pass density= or budget="
        raise ValueError(f"{name}: expected a share in (0, 1], got {given!r}{percent}")
    share = given if isinstance(given, int) else float(given)
    return DensityPerRow(share) if structure == "entries_per_row" else Density(share)


def check_batches_of(score: Any, batches: Any) -> None:
    """Raise where the score needs batches and there are none, or they are no batches."""
    if batches is not None:
        check_batches(batches)
    elif score is not None and score.needs_batches:
        raise ValueError(
            f"batches: score={score.name!r} needs batches to take gradients on, got None"
        )


def check_weights(weights: dict[str, nn.Parameter]) -> None:
    """Raise ValueError for a weight that has no numbers yet, or of which only a part is here."""
    for name, weight in weights.items():
        if is_sharded_tensor(weight):
            raise ValueError(
                f"targets: {name!r}: a DTensor, which tensor parallel (parallelize_module) has cut,"
                " and no process sees the scores of all of it; choose before, for a plan speaks of"
                " whole weights"
            )
        if is_lazy(weight):
            raise ValueError(f"targets: {name!r}: {why_not(weight)}")
