"""total: the sum of a score over all entries of a layer (Surgical FIM, layer-FL)."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from ...ranks import Ranks
from ..again import check_quantised
from ..arguments import check_batches_of
from ..choosing import Chooser
from ..job import Batches, Job
from ..losses import Loss, checked
from ..ranking import source_of
from ..scope import Scope
from ..scores import as_score
from ..units import Structure
from .layers import layers_of


def total(
    model: nn.Module,
    score: Any = "fisher",
    *,
    batches: Iterable[Any] | None = None,
    layers: str | Iterable[str] | None = None,
    loss: Loss | None = None,
    max_batches: int | None = None,
    seed: int = 0,
    process_group: Any = None,
) -> dict[str, float]:
    """{layer: the sum of `score` over the entries of its parameters}.

    score, batches, loss, max_batches, seed, process_group: as in `sft.select`. layers: glob
    pattern(s) on module names; by default the members of the model's lists. Scores that are sums
    ("fisher", "gradient_abs", "taylor", "snip") take a number a parameter. The model is left as it
    was. Raises ValueError or TypeError that name the argument.
    """
    rated = as_score(score)
    check_batches_of(rated, batches)
    found = layers_of(model, layers)
    owners: dict[str, str] = {}
    for layer, module in found.items():
        for name, parameter in module.named_parameters():
            if parameter.numel() and parameter.dim():
                owners.setdefault(f"{layer}.{name}", layer)
    every = dict(model.named_parameters())
    asked = process_group if rated.needs_batches else False
    with Ranks("sft.layer_scores.total", asked) as ranks:
        job = Job(
            model=model,
            weights={name: every[name] for name in owners if name in every},
            structure=Structure("tensors"),
            batches=None if batches is None else Batches(batches, max_batches),
            loss=checked(loss, getattr(rated, "per", "batch") == "example"),
            ranks=ranks,
            seed=seed,
            given_loss=loss,
        )
        check_quantised(rated, model, job.weights)
        worths = Chooser(job, source_of(rated, job), Scope(), rated.name).worths()
        sums = dict.fromkeys(found, 0.0)
        for name, score_of_all in worths:
            sums[owners[name]] += float(score_of_all)
    return sums
