"""What decides that a step is skipped, and how many were, without a look from the host at what lies
on a device.
"""

from collections.abc import Iterable
from functools import reduce
from typing import SupportsInt

import torch


def any_nonfinite(gradients: Iterable[Iterable[torch.Tensor]]) -> torch.Tensor:
    """1.0 where a gradient holds inf or NaN, 0.0 otherwise: float32, one element, on the device of
    the first.

    gradients: lists, each on one device. A kernel sees only the gradients of its own launch.
    """
    finite = [
        reduce(torch.logical_and, (gradient.isfinite().all() for gradient in on_one))
        for on_one in gradients
    ]
    return 1.0 - reduce(torch.logical_and, (each.to(finite[0].device) for each in finite)).float()


class SkippedSteps:
    """A count that advances where the reason to skip is known: on its device, or here for one in
    host memory.
    """

    def __init__(self, count: SupportsInt = 0) -> None:
        self._here = int(count)
        self._on: dict[torch.device, torch.Tensor] = {}  # int64, one element

    def add(self, found_inf: torch.Tensor) -> None:
        """found_inf: one element, nonzero for a step that was skipped."""
        if found_inf.is_cpu:
            self._here += bool(found_inf)
            return
        device = found_inf.device
        if device not in self._on:
            self._on[device] = torch.zeros((), dtype=torch.int64, device=device)
        self._on[device] += found_inf.view(()) != 0

    def __int__(self) -> int:
        """Waits for the devices."""
        return self._here + int(sum(count.item() for count in self._on.values()))
