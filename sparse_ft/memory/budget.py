"""Bytes: a budget for `sft.select`, told by the memory that a training step may take."""

import re
from typing import Any

import torch
from torch import nn

from ..plan import Plan
from ..salience.budgets import Density
from ..salience.choosing import Chooser
from ..selection import Selection
from .estimates import estimate
from .table import readable

_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
# Estimates lie within 1 % of the allocator's peak on the models of tests/memory, so that what they
# find to fit up to here does fit.
SAFE = 0.985
NEAR = 0.99  # of what may be used, that is near enough
TRIALS = 24


def bytes_of(size: int | str) -> int:
    """Bytes of a number, or of a text such as "16GB", "512 MiB", "8e9".

    Raises ValueError for anything else.
    """
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    parts = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*([kmgt]?i?)b?\s*", str(size).lower())
    known = _SIZES | _BINARY
    if not isinstance(size, str) or parts is None or parts[2] not in known:
        raise ValueError(f"size: expected bytes as an int or a text like '16GB', got {size!r}")
    return int(float(parts[1]) * known[parts[2]])


class Bytes:
    """As much as a training step within `size` can hold, weights and all: "16GB", "512MiB", bytes.

    The largest density whose step `sft.estimate` finds to fit, by trying: choose, estimate, and
    again. settings: `batch_size`, `sequence_length` or `inputs`, `lean`, `optimizer`, `dtype`,
    `padded`, `values_dtype`, as `sft.estimate` takes them. also: what trains besides, {parameter
    name: Selection | "all"}, such as a head. `select` raises ValueError where not even the least
    choice fits, with what that takes.
    """

    def __init__(
        self, size: int | str, *, also: dict[str, Selection | str] | None = None, **settings: Any
    ):
        self.size, self._also, self._settings = bytes_of(size), dict(also or {}), settings

    def __repr__(self) -> str:
        return f"Bytes({self.size:,})"

    def choose(self, chooser: Chooser) -> dict[str, Selection | str]:
        """What trains of each weight."""
        trial = _Trials(self.size, chooser, self._also, self._settings)
        least = 1.0 / max(weight.numel() for weight in chooser.job.weights.values())
        if trial.fits(1.0):
            return trial.chosen
        if not trial.fits(least):
            raise ValueError(
                f"budget: the least that can train takes {readable(trial.peak)}, and {self!r} is"
                f" {readable(self.size)}; a smaller batch, lean=True or another optimizer may do"
            )
        return trial.best(least, 1.0)


class _Trials:
    """Plans of some densities, and what their training steps take."""

    def __init__(self, size: int, chooser: Chooser, also: dict, settings: dict):
        self._may = int(size * SAFE)
        self._chooser, self._also, self._settings = chooser, also, settings
        self._model: nn.Module = chooser.job.model
        self.chosen: dict[str, Selection | str] = {}
        self.peak = 0

    def fits(self, density: float) -> bool:
        """Whether a step of this density's choice is within the bytes."""
        self.chosen = self._chooser.amount(Density(density), last=False)
        with torch.random.fork_rng(devices=[]):
            told = estimate(self._model, Plan(self.chosen) | self._also, **self._settings)
        self.peak = told.peak
        return self.peak <= self._may

    def best(self, low: float, high: float) -> dict[str, Selection | str]:
        """The choice of the largest density between `low`, which fits, and `high`, which does not.

        The geometric mean is tried at first, then where a straight line through both ends meets
        the limit.
        """
        chosen = None
        peaks: dict[float, int] = {}
        for number in range(TRIALS):
            middle = (low * high) ** 0.5
            if low in peaks and high in peaks and number % 3:
                along = (self._may - peaks[low]) / max(peaks[high] - peaks[low], 1)
                middle = low + (high - low) * min(max(along, 0.02), 0.98)
            if self.fits(middle):
                chosen, low = self.chosen, middle
                if self.peak >= NEAR * self._may:
                    return chosen
            else:
                high = middle
            peaks[middle] = self.peak
            if high / low < 1.002:
                break
        if chosen is None:
            self.fits(low)
            chosen = self.chosen
        return chosen
