"""What decides that a step is skipped, and how many were, without a look from the host at what lies
on a device.
"""

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import SupportsInt

import torch

from ..parallel.dtensors import local_of
from .batches import Batch
from .shards import PreparedShard, found_anywhere


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


def found_before(
    batches: Sequence[Batch], found_inf: torch.Tensor | None, skip_nonfinite: bool
) -> torch.Tensor | None:
    """What tells a step whether to skip, or will tell once it has looked; None: nothing does.

    found_inf: a GradScaler's, or None.
    """
    shards = [shard for batch in batches for shard in batch.shards]
    if shards:
        return _found_on_any_rank(batches, shards, found_inf, skip_nonfinite)
    if not skip_nonfinite:
        return found_inf
    if len(batches) > 1:
        found = _found_in(batches)
        return found if found_inf is None else torch.maximum(found, found_inf.to(found.device))
    device = batches[0].device
    if found_inf is None:
        return torch.zeros((), dtype=torch.float32, device=device)
    return found_inf.to(device)


def _found_on_any_rank(
    batches: Sequence[Batch],
    shards: list[PreparedShard],
    found_inf: torch.Tensor | None,
    skip_nonfinite: bool,
) -> torch.Tensor | None:
    """Where each rank sees a part of the gradients."""
    if found_inf is not None:
        found_inf = local_of(found_inf)
    if skip_nonfinite:
        found = _found_in(batches)
        found_inf = found if found_inf is None else torch.maximum(found, found_inf)
    return None if found_inf is None else found_anywhere(found_inf, shards)


def _found_in(batches: Sequence[Batch]) -> torch.Tensor:
    return any_nonfinite(batch.gradients() for batch in batches)


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
