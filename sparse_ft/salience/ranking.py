"""select: score every targeted weight and keep the best part of each."""

import itertools
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..conversion import matrix_shape
from ..messages import did_you_mean
from ..nn.foreign import why_not
from ..nn.selected import Selected
from ..plan import Plan
from ..ranks import Ranks
from ..selection import Selection, as_block_size
from .budget import STRUCTURES, top
from .losses import Loss, check_batches, checked
from .progress import followed, is_shown, number_of
from .scores import gradient_scores, magnitude_scores, random_scores
from .targets import targets_of

SCORES = ("random", "magnitude", "gradient")


def select(
    model: nn.Module,
    *,
    density: float,
    structure: str = "columns",
    score: str | None = None,
    scope: str = "layer",
    targets: str | Iterable[str] | None = None,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    block_size: int | tuple[int, int] = 64,
    seed: int = 0,
    progress: bool | None = None,
    process_group: Any = None,
) -> Plan:
    """Choose what trains: a `Plan` with a selection for every targeted weight. `print(plan)` says
    what was chosen.

    density: share of each weight that trains, in (0, 1]. structure: "rows", "columns", "blocks" (of
    `block_size`, int or pair, cut to a weight that is smaller), "entries" or "entries_per_row".
    score: "random" (seeded by `seed`), "magnitude" (|W|) or "gradient" (|mean gradient| over
    `batches`); default: "gradient" where batches are given, else "random" with a warning. scope:
    "layer", each weight on its own. batches: iterable of batches for "gradient"; four of them are
    enough to rank. loss: callable (model, batch) -> scalar; default `model(**batch).loss`.
    progress: whether to show it on stderr;
    default: in a terminal or a notebook.

    targets: glob pattern(s) on parameter names, such as "*q_proj.weight". Default: the weights of
    all linear layers, and of the convolutions where these hold more entries than the linear layers;
    without output heads, adapters (PEFT) and depthwise convolutions. `plan.left` names the matrices
    that the default passed over, and why.

    process_group: in several processes, whose gradients count for "gradient". None: those of all,
    where torch.distributed is initialised by now, which all must call this then (each with its own
    batches: the mean over all batches is ranked, and all choose alike); a ProcessGroup: those of
    its ranks; False: this process chooses by itself.

    The model is left as it was. Warns where the density asks for less than one row, column or
    block, which trains then. Raises ValueError or TypeError that name the argument.
    """
    by_gradient = score == "gradient" or (score is None and batches is not None)
    with Ranks("sft.select", process_group if by_gradient else False) as ranks:
        ranks.warn_if_early()
        return _select(
            model,
            density,
            structure,
            score,
            scope,
            targets,
            batches,
            loss,
            block_size,
            seed,
            progress,
            ranks,
        )


def _select(
    model,
    density,
    structure,
    score,
    scope,
    targets,
    batches,
    loss,
    block_size,
    seed,
    progress,
    ranks,
):
    _check(density, structure, score, scope, batches)
    _check_not_converted(model)
    block_size = as_block_size(block_size)
    weights, left = targets_of(model, targets)
    for name, weight in weights.items():
        if is_lazy(weight):
            raise ValueError(f"targets: {name!r}: {why_not(weight)}")
    if score is None:
        score = "random" if batches is None else "gradient"
        if score == "random":
            _warn(
                "score: what trains is drawn at random; pass batches= to rank by gradients, or"
                " score='random' to mean it"
            )
    elif score != "gradient" and batches is not None:
        _warn(f"batches: score={score!r} does not look at them; score='gradient' does")
    shown = is_shown(progress)
    if score == "random":
        scores = random_scores(_matrices(model, weights), torch.Generator().manual_seed(seed))
    elif score == "magnitude":
        scores = magnitude_scores(_matrices(model, weights))
    else:
        batches = followed(batches, "gradients of batches", number_of(batches), shown)
        scores = gradient_scores(model, weights, batches, checked(loss), ranks)
    chosen = {}
    scores = itertools.chain(
        [next(scores)], scores
    )  # all gradients are taken before the first score comes
    for name, values in followed(scores, "choosing in weights", len(weights), shown):
        if not values.isfinite().all():
            raise ValueError(
                f"score: {score!r} of {name!r} is not finite everywhere; look for NaN or inf in the"
                " weights and batches"
            )
        matrix = values.reshape(matrix_shape(model, name))
        best = top(matrix, density, structure, block_size).on(matrix.shape)
        chosen[name] = best.to(weights[name].device)
    _warn_of_coarse(model, chosen, density, structure)
    return Plan(chosen, left=left)


def _check(density, structure, score, scope, batches):
    if not (isinstance(density, (int, float)) and 0 < density <= 1):
        percent = ""
        if isinstance(density, (int, float)) and 1 < density <= 100:
            percent = f"; {density:g} % is {density / 100:g}"
        raise ValueError(f"density: expected a share in (0, 1], got {density!r}{percent}")
    known = {
        "structure": (structure, STRUCTURES),
        "score": (score, (*SCORES, None)),
        "scope": (scope, ("layer",)),
    }
    for name, (value, choices) in known.items():
        if value not in choices:
            meant = did_you_mean(value, [c for c in choices if c]) if isinstance(value, str) else ""
            near = meant if "did you mean" in meant else ""
            raise ValueError(
                f"{name}: expected {' or '.join(map(repr, choices))}, got {value!r}{near}"
            )
    if batches is not None:
        check_batches(batches)
    elif score == "gradient":
        raise ValueError("batches: score='gradient' needs batches to take gradients on, got None")


def _check_not_converted(model):
    for name, module in model.named_modules():
        if isinstance(module, Selected):
            raise ValueError(
                f"model: it is converted already ({name!r} holds selected values); call"
                " sft.revert(model) first, then select and convert anew"
            )


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)  # at the call of select


def _warn_of_coarse(
    model: nn.Module, chosen: dict[str, Selection], density: float, structure: str
) -> None:
    """Name the weights of which less than half a row, column or block was asked for: one trains all
    the same.
    """
    shares = {
        name: selection.density(matrix_shape(model, name)) for name, selection in chosen.items()
    }
    coarse = [name for name, share in shares.items() if share > 2 * density]
    if not coarse:
        return
    worst = max(coarse, key=shares.get)
    unit = {"entries": "entry", "entries_per_row": "entry a row"}.get(
        structure, structure.rstrip("s")
    )
    others = f" and of {len(coarse) - 1} more" if len(coarse) > 1 else ""
    finer = "" if structure == "entries" else "; structure='entries' trains what is asked"
    message = (
        f"density: {density:g} is less than one {unit} of {worst!r}{others}, and one trains:"
        f" {shares[worst]:.3g} of {worst!r}, {shares[worst] / density:.3g} times what was"
        f" asked{finer}"
    )
    warnings.warn(message, UserWarning, stacklevel=4)


def _matrices(model, weights):
    return {
        name: weight.detach().reshape(matrix_shape(model, name)) for name, weight in weights.items()
    }
