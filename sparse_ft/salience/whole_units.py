"""Whole units: heads, channels, experts, layers, … chosen under any score and budget.

A unit is worth the sum of what its entries are worth, in all of its parameters that are targeted.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from ..messages import described
from ..selection import Selection
from ..units import KINDS as UNIT_KINDS
from ..units import Group, Part, Share, Units, units
from .budgets import Count, Density
from .budgets import Share as ScoreShare
from .job import Job
from .scope import Scope
from .small import pick_small
from .targets import targets_of
from .units import Structure
from .warn import warn
from .worths import Source, Worths

__all__ = ["UNIT_KINDS", "Targeted", "choose", "targeted"]
BUDGETS = (Density, Count, ScoreShare)


class Targeted(NamedTuple):
    """units: what was found. groups: those of the kind asked for that have targeted parameters.

    weights: {name: parameter} of these. left: {name: why} of what the default passed over.
    """

    units: Units
    groups: list[Group]
    weights: dict[str, nn.Parameter]
    left: dict[str, str]


def targeted(
    model: nn.Module,
    kind: str,
    found: Units | None,
    batch: Any,
    loss: Any,
    patterns: str | Iterable[str] | None,
) -> Targeted:
    """The units of one kind to choose from. found: None for `sft.units` of `batch`.

    patterns: which parameters of a unit train; None: all, but units that have parameters of an
    output head are left out. Raises ValueError where there are none.
    """
    if found is not None and not isinstance(found, Units):
        raise TypeError(f"units: expected what sft.units gives, got {described(found)}")
    found = found or units(model, batch, loss)
    parameters = dict(model.named_parameters())
    groups, left = found.of(kind), {}
    if patterns is None:
        names = set(parameters)
        left = {name: why for name, why in _of_heads(model).items() if name in parameters}
        if kind != "embedding_rows":
            groups = [g for g in groups if not any(s.parameter in left for s in g.shares)]
    else:
        names = set(targets_of(model, patterns).weights)
    groups = [group for group in groups if any(s.parameter in names for s in group.shares)]
    if not groups:
        where = "among these targets" if patterns is not None else "in this model"
        undecided = "".join(f"; {name}: {why}" for name, why in list(found.undecided.items())[:3])
        raise ValueError(f"structure: there are no {kind!r} {where}{undecided}")
    mine = {share.parameter for group in groups for share in group.shares} & names
    weights = {name: p for name, p in parameters.items() if name in mine and p.numel()}
    return Targeted(found, groups, weights, {k: v for k, v in left.items() if k not in mine})


def _of_heads(model: nn.Module) -> dict[str, str]:
    """{name: why} of parameters of output heads, where the default target tells them."""
    try:
        left = targets_of(model, None).left
    except ValueError:  # no layer that is targeted by default
        return {}
    return {name: why for name, why in left.items() if "output head" in why}


def choose(
    job: Job, source: Source, scope: Scope, label: str, budget: Any, among: Targeted
) -> dict[str, Selection | str]:
    """{parameter: what trains of it}, of whole units."""
    if not isinstance(budget, BUDGETS):
        raise ValueError(
            f"budget: {budget!r} does not choose whole units; pass a density, a number of units,"
            " or sft.Share"
        )
    worth = _worth(job, Worths(job, source, scope, label), among)
    groups = {group.site: group for group in among.groups}
    picked: dict[str, torch.Tensor] = {}
    for pool in scope.pools({site: (group.count, 1) for site, group in groups.items()}):
        picked |= _picked(job, scope, budget, {site: groups[site] for site in pool}, worth)
    if isinstance(budget, Density):
        _warn_of_coarse(job, groups, picked, budget.density)
    parts: dict[str, list[Part]] = {}
    for site, numbers in picked.items():
        for share in groups[site].shares:
            parts.setdefault(share.parameter, []).append(_part(share, numbers))
    chosen: dict[str, Selection | str] = {}
    for name, weight in job.weights.items():
        mine = [part for part in parts.get(name, ()) if part.dimension is None or part.index]
        if mine:
            what = among.units.selection(name, mine)
            chosen[name] = what if isinstance(what, str) else what.to(weight.device)
    return chosen


def _warn_of_coarse(
    job: Job, groups: dict[str, Group], picked: dict[str, torch.Tensor], density: float
) -> None:
    """Say so where less than half a unit was asked for, and one trains all the same."""
    sizes = {site: _sizes(job, group) for site, group in groups.items()}
    every = sum(int(mine.sum()) for mine in sizes.values())
    taken = sum(int(sizes[site][numbers].sum()) for site, numbers in picked.items())
    if taken > 2 * density * every:
        warn(
            f"density: {density:g} is less than one unit of {next(iter(picked))!r}, and one trains:"
            f" {taken / every:.3g} of what was targeted; scope='global' spreads the budget"
        )


def _picked(
    job: Job, scope: Scope, budget: Any, pool: dict[str, Group], worth: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """{site: numbers of units} of one budget."""
    sizes = {site: _sizes(job, group) for site, group in pool.items()}
    shapes = []
    for site, group in pool.items():
        mean = float(sizes[site].double().mean())
        shapes.append((group.count, max(1, round(mean))))
    allowance = budget.allowance(shapes, Structure("rows", is_rounded=False))
    floors = {site: scope.floor_of(group.count) for site, group in pool.items()}
    caps = {site: max(scope.cap_of(group.count), floors[site]) for site, group in pool.items()}
    scores = {site: worth[site] for site in pool}
    return pick_small(scores, sizes, allowance, floors, caps, job.seed)


def _part(share: Share, numbers: torch.Tensor) -> Part:
    """What the units `numbers` have of a share; without an index where that is nothing."""
    mine = torch.isin(share.owner, numbers)
    index = tuple(share.index[mine].sort().values.tolist())
    dimension = share.dimension
    if not index:
        dimension = 0  # of no unit: not the whole parameter either
    return Part(share.parameter, dimension, index, share.expert, share.takes)


def _worth(job: Job, worths: Worths, among: Targeted) -> dict[str, torch.Tensor]:
    """{site: fp64 [units]}: one pass over the scores, a parameter at a time."""
    scope = worths.scope
    worth = {group.site: torch.zeros(group.count, device="cpu").double() for group in among.groups}
    for name, matrix in worths.matrices(last=True):
        score = matrix.reshape(job.weights[name].shape)
        scale = scope.scale(score)
        for group in among.groups:
            for share in group.shares:
                if share.parameter == name:
                    each = _along(score, share) / scale
                    worth[group.site].index_add_(0, share.owner, each)
        del matrix, score
    return worth


def _along(score: torch.Tensor, share: Share) -> torch.Tensor:
    """fp64 [index]: the sum of the scores at each entry of a share."""
    if share.dimension is None:
        return score.sum(dtype=torch.float64).reshape(1).cpu()
    inner = score if share.expert is None else score[share.expert]
    dimension = share.dimension - (share.expert is not None)
    others = [d for d in range(inner.dim()) if d != dimension]
    every = inner.sum(others, dtype=torch.float64) if others else inner.double()
    return every.cpu()[share.index]


def _sizes(job: Job, group: Group) -> torch.Tensor:
    """int64 [units]: how many entries of targeted parameters each has."""
    sizes = torch.zeros(group.count, dtype=torch.int64, device="cpu")
    for share in group.shares:
        if share.parameter not in job.weights:
            continue
        shape = job.weights[share.parameter].shape
        each = shape.numel()
        if share.dimension is not None:
            each //= shape[share.dimension]
        if share.expert is not None:
            each //= shape[0]
        sizes.index_add_(0, share.owner, torch.full_like(share.owner, each))
    return sizes
