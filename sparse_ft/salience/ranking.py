"""select: score every targeted weight and keep the best part of each."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..messages import check_module
from ..nn.sharded import BEFORE, refuse_sharded
from ..plan import Plan
from ..ranks import Ranks
from ..selection import Selection, as_block_size
from ..units import Units
from .again import check_again, check_quantised, is_converted, targets_again
from .arguments import (
    as_budget,
    check_batches_of,
    check_choices,
    check_names,
    check_seed,
    check_weights,
)
from .budgets import Density, DensityPerRow
from .choosing import NONE_CHOSEN, Chooser
from .collecting import GradientSource
from .job import Batches, Job
from .losses import Loss, checked
from .progress import is_shown
from .recompute import check_can_recompute
from .scope import Bound, Scope
from .score import Score
from .scores import as_score, gradient, random
from .targets import targets_of
from .units import Structure
from .warn import warn
from .whole_units import UNIT_KINDS, choose, targeted
from .worths import Source


def select(
    model: nn.Module,
    *,
    density: float | None = None,
    budget: Any = None,
    structure: str | None = None,
    score: str | Score | Mapping[str, torch.Tensor] | None = None,
    scope: str | None = None,
    groups: Mapping[str, str | Iterable[str]] | None = None,
    floor: Bound = None,
    cap: Bound = None,
    normalize: str | None = None,
    combine: str = "sum",
    targets: str | Iterable[str] | None = None,
    batches: Iterable[Any] | None = None,
    max_batches: int | None = None,
    loss: Loss | None = None,
    block_size: int | tuple[int, int] = 64,
    accumulate: str = "device",
    passes: int = 4,
    recompute: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    process_group: Any = None,
    units: Units | None = None,
) -> Plan:
    """Choose what trains: a `Plan` with a selection for every targeted weight.

    `print(plan)` says what was chosen.

    density: share of what is targeted that trains, in (0, 1]. Where each weight has a share of its
    own, that is the nearest number of units; of 256 rows or columns and more the nearest multiple
    of 8 (of 16 from 1024 chosen on), for GPUs multiply others at half the speed. Fewer than 8, all
    of them, whole units, shared budgets and numbers that you give stay exact.
    budget: instead of a density, a number of units (int), `sft.PerRow(k)`, `sft.NM(n, m)`,
    `sft.LikeLora(r)`, `sft.Share(p)`, `sft.Bytes("16GB")` or `sft.Flops(share)`.
    structure: what trains together: "columns" (the default), "rows", "blocks" (of `block_size`, int
    or pair, cut to a weight that is smaller), "entries", "entries_per_row" or whole "tensors".
    Or what belongs together in several parameters, chosen whole: "heads" (those that share keys and
    values are one), "query_heads" (rows of queries, columns of the output projection), "channels"
    (of FFNs), "convolution_channels", "experts", "layers", "neurons", "embedding_rows". units: what
    `sft.units` found; None: it is asked, on the first batch. Scopes and groups then speak of the
    units' sites, and targets of the parameters of a unit that train; by default all.
    combine: a row, column, block or tensor is worth the "sum" of its entries' scores, or the
    "abs_of_sum" of what they are with their signs (SMT's blocks).

    score: "random" (seeded by `seed`), "magnitude", "magnitude_bottom", "principal", of weights
    alone; "gradient", "gradient_abs", "fisher", "fisher_expected", "saliency", "taylor", "snip",
    "synflow", "grasp", "sensitivity", "ratio", "activation", of `batches`; an `sft.Score`, one of
    `sft.scores`, or a mapping {parameter name: tensor}. Default: "gradient" where batches are
    given, else "random" with a warning.
    A freshly made head sends gradients that have nothing to do with the task yet: train it for a
    few steps first (a plan with the head alone), or take a score without gradients.

    scope: which weights share the budget: "layer" (or "tensor"), each has its own; "group", those
    that `groups` {label: glob pattern(s)} puts together, by default those whose names differ in the
    number of their layer only; "global", all (the default for "tensors"). A shared budget needs
    bounds, or a few weights take it all: floor and cap are what each weight gets at least and at
    most, a share (float) or a number of units (int); normalize divides each weight's scores by
    their "mean", "norm" or "max" first. `plan.left` names weights that got nothing.
    Of equal scores at the border some are drawn by `seed`, the same on every device and rank.

    targets: glob pattern(s) on parameter names, such as "*q_proj.weight". Default: the weights of
    all linear layers, and of the convolutions where these hold more entries than the linear layers;
    without output heads, adapters (PEFT) and depthwise convolutions. `plan.left` names the matrices
    that the default passed over, and why. Weights without entries are left out.

    batches: iterable of batches, or a DataLoader, of which `max_batches` are taken: by default all,
    8 of a DataLoader. Four are enough to rank. loss: callable (model, batch) -> scalar; default
    `model(**batch).loss`. progress: whether to show it on stderr; default: in a terminal or a
    notebook.

    Memory: one accumulator (fp32; fp64 for weights in fp64) a target, and never more than one
    layer's dense gradient. accumulate: where they are: "device", beside the weight; "cpu";
    "passes", 1/`passes` of them at a time, for as many runs over the batches (under a shared budget
    five times as many). Scores that are sums of what each gradient gives ("gradient_abs",
    "fisher", "taylor", "snip"; with "abs_of_sum" "gradient", "saliency", "synflow" too) need
    one number a row, column or block instead. recompute: hold the activations of one layer only,
    and compute them again in the backward, in a third more time. With both any score takes less
    than a step of the training that follows; `sft.estimate` tells how much.

    process_group: in several processes, whose batches count. None: those of all, where
    torch.distributed is initialised by now, which all must call this then (each with its own
    batches: sums over all batches are ranked, and all choose alike); a ProcessGroup: those of
    its ranks; False: this process chooses by itself.

    In a converted model the parameters with selected entries are chosen in anew, for
    `sft.reselect`, by scores of weights or by gradients of its selective linear layers.

    The model is left as it was. Warns where the density asks for less than one row, column or
    block, which trains then. Raises ValueError or TypeError that name the argument.
    """
    by_batches = score is None and batches is not None
    by_batches = by_batches or (score is not None and _needs_batches(score))
    with Ranks("sft.select", process_group if by_batches else False) as ranks:
        check_module("model", model)
        ranks.warn_if_early()
        bounds: dict[str, Any] = {"floor": floor, "cap": cap, "normalize": normalize}
        words = {"combine": combine, "accumulate": accumulate}
        counts = {"passes": passes, "max_batches": max_batches}
        kind = structure or _default_structure(budget)
        rule = as_budget(density, budget, kind)
        check_choices(structure, scope, **bounds, **words, **counts)
        check_names(targets, groups)
        seed = check_seed(seed)
        rated = None if score is None else as_score(score)
        check_batches_of(rated, batches)
        where = scope or ("global" if kind == "tensors" else "layer")
        if groups is not None and where != "group":
            warn(f"groups: scope={where!r} does not look at them; scope='group' does")
        refuse_sharded(model, BEFORE)
        again = is_converted(model)
        samples = None if batches is None else Batches(batches, max_batches)
        among = None
        if kind in UNIT_KINDS:
            first = None if samples is None else samples.first()
            among = targeted(model, kind, units, first, loss, targets)
            weights, left = among.weights, among.left
        else:
            weights, left = (targets_again if again else targets_of)(model, targets)
        check_weights(weights)
        if recompute:
            check_can_recompute(model)
        weights, empty = _without_empty(weights)
        rated = _with_default(rated, batches)
        if again:
            check_again(rated, model, weights)
        check_quantised(rated, model, weights)
        per_example = getattr(rated, "per", "batch") == "example"
        job = Job(
            model=model,
            weights=weights,
            structure=Structure("entries" if among else kind, as_block_size(block_size), combine),
            batches=samples,
            loss=checked(loss, per_example),
            ranks=ranks,
            seed=seed,
            accumulate=accumulate,
            passes=passes,
            recompute=recompute,
            is_converted=again,
            shown=is_shown(progress),
            given_loss=loss,
        )
        asked, within = source_of(rated, job), Scope(where, groups, **bounds)
        if among:
            chosen = choose(job, asked, within, rated.name, rule, among)
        else:
            chosen = _chosen(Chooser(job, asked, within, rated.name), rule)
    if among:
        return Plan(chosen, left=left)
    if isinstance(rule, (Density, DensityPerRow)) and where in ("layer", "tensor"):
        _warn_of_coarse(job, chosen, rule.density)
    none = {name: NONE_CHOSEN for name in weights if name not in chosen}
    return Plan(chosen, left={**left, **empty, **none})


def source_of(score: Any, job: Job) -> Source:
    """Where the scores of a job come from."""
    return GradientSource(score, job) if isinstance(score, Score) else score.source(job)


def _chosen(chooser: Chooser, budget: Any) -> dict[str, Selection | str]:
    for method in ("pick", "allowance", "choose"):
        if hasattr(budget, method):
            break
    else:
        raise TypeError(
            "budget: expected a share, a number of units, or one of sft.PerRow, NM, LikeLora,"
            f" Share, Bytes and Flops, got {budget!r}"
        )
    if method == "pick":
        if not chooser.job.structure.is_entries:
            raise ValueError(
                f"structure: {budget!r} chooses single entries, got"
                f" {chooser.job.structure.kind!r}; pass structure='entries'"
            )
        return chooser.patterned(budget)
    return chooser.amount(budget) if method == "allowance" else budget.choose(chooser)


def _default_structure(budget: Any) -> str:
    """Single entries for a budget that picks them, or what it says itself; else columns."""
    own = "entries" if hasattr(budget, "pick") else "columns"
    return getattr(budget, "structure", own)


def _needs_batches(score: Any) -> bool:
    """Whether the processes' batches count. An unknown score is told of later."""
    try:
        return as_score(score).needs_batches
    except (TypeError, ValueError):
        return False


def _with_default(score: Any, batches: Any) -> Any:
    """The score, by default the gradient or a random one; says what the user may not expect."""
    if score is None and batches is None:
        warn(
            "score: what trains is drawn at random; pass batches= to rank by gradients, or"
            " score='random' to mean it"
        )
        return random()
    if score is not None and batches is not None and not score.needs_batches:
        warn(f"batches: score={score.name!r} does not look at them; score='gradient' does")
    return gradient() if score is None else score


def _without_empty(
    weights: dict[str, nn.Parameter],
) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    """(the weights with entries, {name: why} of those without)."""
    full = {name: weight for name, weight in weights.items() if weight.numel()}
    empty = {name: "it has no entries" for name in weights if name not in full}
    if not full:
        raise ValueError(f"targets: {next(iter(empty))!r} has no entries, and nothing else is left")
    return full, empty


def _warn_of_coarse(job: Job, chosen: dict[str, Any], density: float) -> None:
    """Name the weights of which less than half a row, column or block was asked for: one trains all
    the same.
    """
    structure = job.structure.kind
    shares = {
        name: selection.density(job.shape(name))
        for name, selection in chosen.items()
        if not isinstance(selection, str)
    }
    coarse = [name for name, share in shares.items() if share > 2 * density]
    if not coarse:
        return
    worst = max(coarse, key=shares.__getitem__)
    units = {"entries": "entry", "entries_per_row": "entry a row"}
    unit = units.get(structure, structure.rstrip("s"))
    others = f" and of {len(coarse) - 1} more" if len(coarse) > 1 else ""
    finer = "" if structure == "entries" else "; structure='entries' trains what is asked"
    warn(
        f"density: {density:g} is less than one {unit} of {worst!r}{others}, and one trains:"
        f" {shares[worst]:.3g} of {worst!r}, {shares[worst] / density:.3g} times what was"
        f" asked{finer}"
    )
