"""merge: several deltas of one base as one."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from .base import on_base
from .delta import Delta
from .dense import Shared, names_of, put_together, shared
from .part import Part
from .rules import RULES, Rule, mix
from .same_base import rest_of_both, rest_of_part


def merge(
    deltas: Sequence[Delta],
    rule: str | None = None,
    *,
    weights: Sequence[float] | None = None,
    density: float = 1.0,
    seed: int = 0,
    base: nn.Module | None = None,
) -> Delta:
    """Several deltas of one base as one delta.

    Deltas that change different entries add up exactly: applying the result is applying each. For
    entries that more than one changes, `rule` is one of

    - "sum": base + Σ weight · (value - base) (task arithmetic);
    - "mean": base + the weighted mean over those that touch the entry;
    - "ties": the largest `density` of each delta, then the weighted mean of those that have the
      sign of the weighted sum (TIES, Yadav et al. 2023);
    - "dare", "dare_ties": each entry is kept with probability `density` and the rest scaled so that
      the sum of magnitudes stays, then the sum, or the sum over one sign (Yu et al. 2024).

    They are mergekit's task_arithmetic, linear, ties, dare_linear and dare_ties; density is a share
    of the entries of a delta, not of its tensors. weights: one a delta, default 1. seed: of what
    "dare" drops. base: the base model, for deltas that do not know what it holds (`origin`); every
    rule needs it where deltas overlap. Calculated in fp32 (fp64 for fp64), rounded once.

    Raises ValueError for overlaps without a rule or without a known base, and for deltas of
    different bases, naming the tensor. The result is on the CPU.
    """
    deltas = _checked(deltas, rule, weights, density)
    if base is not None:
        deltas = [on_base(delta, base) for delta in deltas]
    given = [1.0] * len(deltas) if weights is None else [float(weight) for weight in weights]
    draw = torch.Generator().manual_seed(seed)
    parts = {}
    for name in names_of(deltas):
        some = [number for number, delta in enumerate(deltas) if name in delta]
        mine = [deltas[number][name] for number in some]
        parts[name] = _merged(name, mine, [given[number] for number in some], rule, density, draw)
    names = {delta.base_name for delta in deltas}
    of_all = names.pop() if len(names) == 1 else None
    return Delta(parts, rest_of_both(deltas, list(parts)), of_all, _recipe(deltas, rule, given))


def _checked(
    deltas: Sequence[Delta], rule: str | None, weights: Sequence[float] | None, density: float
) -> list[Delta]:
    deltas = list(deltas)
    if not deltas or not all(isinstance(delta, Delta) for delta in deltas):
        raise TypeError(f"deltas: expected a list of Delta, got {deltas!r}")
    if rule is not None and rule not in RULES:
        raise ValueError(f"rule: expected one of {', '.join(map(repr, RULES))}, got {rule!r}")
    if weights is not None and len(weights) != len(deltas):
        raise ValueError(f"weights: expected {len(deltas)}, one a delta, got {len(weights)}")
    if not 0 < density <= 1:
        raise ValueError(f"density: expected a share in (0, 1], got {density!r}")
    return deltas


def _merged(
    name: str,
    parts: list[Part],
    weights: list[float],
    rule_name: str | None,
    density: float,
    draw: torch.Generator,
) -> Part:
    """The part of one tensor."""
    first = parts[0]
    for part in parts[1:]:
        if part.shape != first.shape or part.values.dtype != first.values.dtype:
            raise ValueError(
                f"deltas: {name!r} is {part.shape} {part.values.dtype} in one of them and"
                f" {first.shape} {first.values.dtype} in another"
            )
    rule = RULES[rule_name or "sum"]
    is_number = first.values.is_floating_point()
    if len(parts) == 1 and (not is_number or _keeps(rule, weights, rule_name, density)):
        return first.to("cpu")
    all_of = shared(parts)
    alone = all_of.touched.sum(0) == 1
    if rule_name is None and not alone.all():
        raise ValueError(
            f"rule: deltas change the same entries of {name!r}; say how to mix them:"
            f" {', '.join(map(repr, RULES))}"
        )
    if not is_number:
        raise ValueError(f"rule: {name!r} is {first.values.dtype}, which no rule mixes")
    exact = alone if _keeps(rule, weights, rule_name, density) else torch.zeros_like(alone)
    if not exact.all() and any(part.origin is None for part in parts):
        raise ValueError(
            f"deltas: nothing tells what the base holds of {name!r} where they are mixed; give"
            " base=, the base model, or deltas that keep it (origin=True)"
        )
    mixed = _mixed(all_of, weights, rule, density, draw)
    toucher = all_of.touched.byte().argmax(0, keepdim=True)  # a sum would lose the sign of -0.0
    own = all_of.values.gather(0, toucher).squeeze(0)
    values = torch.where(exact, own, mixed)
    origin = all_of.origin if all(part.origin is not None for part in parts) else None
    part = put_together(parts, all_of, values, origin)
    return dataclasses.replace(part, rest=rest_of_part(name, parts, part))


def _keeps(rule: Rule, weights: list[float], name: str | None, density: float) -> bool:
    """Whether an entry that one delta alone changes gets that delta's value, bit for bit."""
    if name is None:
        return True
    keeps_all = rule.trim is None or density >= 1
    return keeps_all and (rule.normalize or all(weight == 1 for weight in weights))


def _mixed(
    all_of: Shared, weights: list[float], rule: Rule, density: float, draw: torch.Generator
) -> torch.Tensor:
    wide = torch.promote_types(all_of.values.dtype, torch.float32)
    origin = all_of.origin.to(wide)
    differences = all_of.values.to(wide) - origin
    factors = torch.tensor(weights, dtype=wide, device="cpu")
    added = mix(rule, differences, all_of.touched, factors, density, draw)
    return (origin + added).to(all_of.values.dtype)


def _recipe(deltas: list[Delta], rule: str | None, weights: list[float]) -> dict:
    return {"merge": rule, "weights": weights, "of": [delta.recipe for delta in deltas]}
