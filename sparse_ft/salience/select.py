"""select: score every targeted weight and keep the best part of each."""

import fnmatch

import torch
from torch import nn

from ..convert import matrix_shape
from ..plan import Plan
from ..selection import as_block_size
from .budget import STRUCTURES, top
from .scores import gradient_scores, magnitude_scores, random_scores

SCORES = ("random", "magnitude", "gradient")


def select(
    model,
    *,
    density,
    structure="columns",
    score="random",
    scope="layer",
    targets=None,
    batches=None,
    loss=None,
    block_size=64,
    seed=0,
):
    """Choose what trains: a `Plan` with a selection for every targeted weight.

    density: share of each weight that trains, in (0, 1]. structure: "rows", "columns", "blocks" (of `block_size`, int or pair),
    "entries" or "entries_per_row". score: "random" (seeded by `seed`), "magnitude" (|W|) or "gradient" (|mean gradient| over
    `batches`). scope: "layer", each weight on its own. targets: glob pattern(s) on parameter names, such as "*q_proj.weight";
    default: the weights of all linear layers but the output head. batches: iterable of batches for "gradient". loss:
    callable (model, batch) -> scalar; default `model(**batch).loss`.

    The model is left as it was. Raises ValueError or TypeError that name the argument.
    """
    _check(density, structure, score, scope, batches)
    block_size = as_block_size(block_size)
    weights = targets_of(model, targets)
    if score == "random":
        scores = random_scores(_matrices(model, weights), torch.Generator().manual_seed(seed))
    elif score == "magnitude":
        scores = magnitude_scores(_matrices(model, weights))
    else:
        scores = gradient_scores(model, weights, batches, loss or _own_loss)
    chosen = {}
    for name, values in scores:
        if not values.isfinite().all():
            raise ValueError(
                f"score: {score!r} of {name!r} is not finite everywhere; look for NaN or inf in the weights and batches"
            )
        matrix = values.reshape(matrix_shape(model, name))
        best = top(matrix, density, structure, block_size).on(matrix.shape)
        chosen[name] = best.to(weights[name].device)
    return Plan(chosen)


def _check(density, structure, score, scope, batches):
    if not (isinstance(density, (int, float)) and 0 < density <= 1):
        raise ValueError(f"density: expected a share in (0, 1], got {density!r}")
    for name, value, known in (("structure", structure, STRUCTURES), ("score", score, SCORES), ("scope", scope, ("layer",))):
        if value not in known:
            raise ValueError(f"{name}: expected {' or '.join(map(repr, known))}, got {value!r}")
    if score == "gradient" and batches is None:
        raise ValueError("batches: score='gradient' needs batches to take gradients on, got None")


def _own_loss(model, batch):
    loss = getattr(model(**batch), "loss", None)
    if loss is None:
        raise ValueError("loss: the model returned none (no labels in the batch?); pass loss=callable(model, batch) -> scalar")
    return loss


def _matrices(model, weights):
    return {name: weight.detach().reshape(matrix_shape(model, name)) for name, weight in weights.items()}


def targets_of(model, patterns):
    """{name: parameter} that match the patterns, or the weights of the linear layers but the output head."""
    if patterns is None:
        names = _linear_weights(model)
        if not names:
            raise ValueError("targets: the model has no linear layer; name the parameters, e.g. targets='*.weight'")
    else:
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        every = [name for name, _ in model.named_parameters()]
        for pattern in patterns:
            if not fnmatch.filter(every, pattern):
                raise ValueError(
                    f"targets: {pattern!r} matches no parameter; names look like {', '.join(map(repr, every[:3]))}"
                )
        names = [name for name in every if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    return {name: model.get_parameter(name) for name in names}


def _linear_weights(model):
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [
        f"{name}.weight".lstrip(".")
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or type(module).__name__ == "Conv1D") and module is not head
    ]
