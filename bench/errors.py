"""How far results are from what they should be."""

from collections.abc import Iterable

import torch


def error_of(got: Iterable[torch.Tensor], want: Iterable[torch.Tensor]) -> float:
    """The largest relative error of a tensor, in norm; infinite where something is not finite."""

    def error(a: torch.Tensor, b: torch.Tensor) -> float:
        a, b = a.double(), b.double()
        return ((a - b).norm() / b.norm().clamp(min=1e-30)).nan_to_num(float("inf")).item()

    return max(error(a, b) for a, b in zip(got, want, strict=True))
