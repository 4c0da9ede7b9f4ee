"""weak_columns: how much the output suffers from quantising an entry."""

import dataclasses
from collections.abc import Iterator, Mapping

import torch

from ...messages import described, did_you_mean
from ...quantised.rounding import Rounding, rounding_of
from ..job import Job
from ..score import Matrix
from .activation import ActivationSource


@dataclasses.dataclass(frozen=True)
class WeakColumns:
    """E x_j² · (W_ij − Ŵ_ij)², which adds up over a column to OWQ's λ_j = (XXᵀ)_jj ‖W_:j − Ŵ_:j‖²
    a token (Lee et al., 2024): the columns whose rounding the output feels most. No backward is
    run.

    Raises ValueError for a target that is no linear layer, or that no batch reaches, by name.
    """

    rounding: Rounding | None
    original: Mapping[str, torch.Tensor] | None

    name = "weak_columns"
    needs_batches = True
    takes_quantised = True

    def source(self, job: Job) -> "WeakColumnsSource":
        return WeakColumnsSource(job, self)


class WeakColumnsSource(ActivationSource):
    """Scores of one run without gradients; each weight is rounded when it is asked for."""

    def __init__(self, job: Job, score: WeakColumns) -> None:
        super().__init__(job)
        self._score = score
        for name in job.weights:
            _check(name, job, score)

    def scores(self, last: bool = True) -> Iterator[tuple[str, Matrix]]:
        for name, driven in super().scores(last):
            yield name, driven.square() * self._error(name).square_()

    def _error(self, name: str) -> Matrix:
        """W − Ŵ, in memory of its own."""
        there = self._job.matrix(name)
        if self._score.original is None:
            rounding = self._score.rounding
            assert rounding is not None
            return there.float() - rounding(there)
        full = self._score.original[name].detach().to(there.device, torch.float32)
        return full.reshape(there.shape) - there.float()


def _check(name: str, job: Job, score: WeakColumns) -> None:
    if score.original is None:
        return
    if name not in score.original:
        near = did_you_mean(name, list(score.original))
        raise ValueError(f"original: it has no {name!r}, which is chosen from{near}")
    rows, columns = job.shape(name)
    if score.original[name].numel() != rows * columns:
        raise ValueError(
            f"original: expected {rows} × {columns} numbers for {name!r}, got"
            f" {described(score.original[name])}"
        )


def weak_columns(
    quantised: str | int | Rounding | None = None,
    original: Mapping[str, torch.Tensor] | None = None,
) -> WeakColumns:
    """See `WeakColumns`.

    quantised: how the weights will be quantised, for a model that is not yet: "nf4", "fp4", a
    number of bits, or a function of a weight (`sparse_ft.quantised.rounding`). original: the
    weights {name: tensor} before they were, for a model that is. Raises ValueError unless one of
    them is given.
    """
    if (quantised is None) == (original is None):
        raise ValueError(
            "quantised: say how the weights will be quantised ('nf4', 'fp4', a number of bits), or"
            " with original= what they were before, and not both"
        )
    rounding = None if quantised is None else rounding_of(quantised)
    return WeakColumns(rounding, original)
