"""What `sft.select` holds at most, in a dry run: a batch's gradients are taken in its own way, and
its scores looked through, on tensors without data.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..ranks import Ranks
from ..salience import threshold
from ..salience.capture import layers_of
from ..salience.collecting import GradientSource
from ..salience.job import Batches, Job
from ..salience.losses import Loss, checked
from ..salience.recompute import check_can_recompute
from ..salience.score import Score
from ..salience.scores import as_score
from ..salience.targets import targets_of
from ..salience.units import Structure, count_of
from ..salience.verifying import Verified
from ..selection import as_block_size
from .batch import loss_of
from .live import Live
from .storages import model_storages

# Of `sft.select`, beside what says which entries a plan's selections have.
SETTINGS = ("score", "combine", "accumulate", "passes", "recompute", "loss")


def split(plan: Any) -> tuple[Any, dict[str, Any] | None]:
    """(the plan, what chooses its selections); None where it does not say: they are random."""
    if not isinstance(plan, Mapping) or "score" not in plan:
        return plan, None
    settings = {name: what for name, what in plan.items() if name in SETTINGS}
    return {name: what for name, what in plan.items() if name not in SETTINGS}, settings


def peak_of_choosing(
    model: nn.Module, plan: Mapping[str, Any], settings: dict[str, Any], inputs: Mapping[str, Any]
) -> int:
    """Bytes, the model's own among them.

    Inside of a dry run, which leaves the model as it was. plan, settings: see `split`. inputs: one
    batch; those that follow take no more. Raises ValueError for a score whose numbers decide what
    is allocated.
    """
    settings = dict(settings)
    score = as_score(settings.pop("score"))
    job = _job(model, plan, inputs, score, **settings)
    live = Live()
    for storage in model_storages(model).values():
        live.follow(storage)
    source = _Source(score, job) if isinstance(score, Score) else score.source(job)
    try:
        with live:
            for name, values in source.scores():
                _choose(job, name, values, source, plan.get("density", 0.01))
                del values  # before the next one is made
    except RuntimeError as error:  # of an op whose result, or its size, hangs on numbers
        raise ValueError(
            f"plan: what choosing by score={score.name!r} takes is not known without numbers"
            f" ({error}); leave the score out, and measure it"
        ) from error
    return live.peak


def _job(
    model: nn.Module,
    plan: Mapping[str, Any],
    inputs: Mapping[str, Any],
    score: Any,
    combine: str = "sum",
    accumulate: str = "device",
    passes: int = 4,
    recompute: bool = False,
    loss: Loss | None = None,
) -> Job:
    if recompute:
        check_can_recompute(model)
    kind = plan.get("structure", "columns")
    by_example = getattr(score, "per", "batch") == "example"
    given_loss: Any = loss  # perhaps None
    return Job(
        model=model,
        weights=targets_of(model, plan.get("targets")).weights,
        structure=Structure(kind, as_block_size(plan.get("block_size", 64)), combine),
        batches=Batches([dict(inputs)], None),
        loss=checked(loss or _own_loss, by_example),
        ranks=Ranks("sft.estimate", False),
        accumulate=accumulate,
        passes=passes,
        recompute=recompute,
        given_loss=given_loss,
    )


def _own_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return loss_of(model(**batch))


class _Source(GradientSource):
    """Takes the layers at their word that their gradients are products: there are no numbers to
    try it with.
    """

    def _may_capture(self) -> Verified:
        if not (self.reduced or self._score.per == "example"):
            return Verified({})
        return Verified(layers_of(self._job.model, self._job.weights))


def _choose(job: Job, name: str, values: torch.Tensor, source: Any, density: float) -> None:
    """Allocates what looking for the best units of a weight does."""
    if source.reduced:
        worths = values.abs() if source.absolute else values
    else:
        matrix = values.reshape(job.shape(name))
        worths = job.structure.judged(matrix, source.absolute)
        del matrix
    count = count_of(worths.numel(), density)
    if worths.numel() <= threshold.STRIP:
        worths.topk(count, sorted=False)
    else:
        for strip in worths.split(threshold.STRIP):
            threshold.keys_of(strip, torch.promote_types(strip.dtype, torch.float32))
    (worths > 0).sum()
    above = torch.empty(count, dtype=torch.int64, device=worths.device)
    (worths == 0).sum()
    torch.cat((above, above[:0]))
