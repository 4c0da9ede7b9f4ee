"""snr: signal to noise of a weight's singular values (Spectrum, Hartford et al. 2024)."""

from collections.abc import Iterable

import torch
from torch import nn

from ..job import matrix_of
from ..targets import targets_of

_QUARTILES = 1.349  # of a normal distribution, between its first and third


def snr(model: nn.Module, *, targets: str | Iterable[str] | None = None) -> dict[str, float]:
    """{weight: Σ singular values above the noise / Σ of those below, over the largest}.

    The noise is what a random matrix has: up to σ · (1 + √β), with σ from the quartiles of the
    singular values and β the ratio of the sides, as Spectrum's code has it (Marchenko and Pastur's
    edge). Without noise below, the sum above counts alone. targets: as in `sft.select`. One matrix
    at a time, in fp32 at least.
    """
    found = {}
    for name, weight in targets_of(model, targets).weights.items():
        matrix = matrix_of(model, name, weight)
        wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        found[name] = _ratio(torch.linalg.svdvals(wide), wide.shape)
    return found


def _ratio(values: torch.Tensor, shape: torch.Size) -> float:
    quartiles = torch.quantile(values, values.new_tensor([0.25, 0.75]))
    sigma = float(quartiles[1] - quartiles[0]) / _QUARTILES
    beta = min(shape) / max(shape)
    edge = sigma * (1 + beta**0.5)
    signal = float(values[values > edge].sum())
    noise = float(values[values <= edge].sum())
    largest = float(values.amax())
    if not largest:
        return 0.0
    return signal / (noise or 1.0) / largest
