"""Seed: moments that entries begin with when they join a selection."""

import dataclasses
from numbers import Integral

import torch

from ..messages import described
from ..optim.exchange import Seeded


@dataclasses.dataclass(slots=True, frozen=True)
class Seed:
    """What was collected of entries before they train, as SpIEL does (Ansell et al., 2024).

    index: int64 [n], sorted flat positions row * columns + column; entries that join and are not
    among them start at zero. grad, grad_squared: float32 [n], the means of their gradients and of
    the squares of these. steps: of how many; the age that an entry joins with.
    """

    index: torch.Tensor
    grad: torch.Tensor
    grad_squared: torch.Tensor
    steps: int

    def check(self, name: str, entries: int) -> None:
        """Raise ValueError or TypeError for what cannot be a seed of the parameter `name`, a matrix
        of so many entries.
        """
        self._check_types(name)
        if self.steps < 1:
            raise ValueError(f"seeds: {name!r}: expected steps of at least 1, got {self.steps}")
        if self.index.dim() != 1 or self.index.shape != self.grad.shape or not len(self.index):
            raise ValueError(
                f"seeds: {name!r}: expected one gradient a position, got shapes"
                f" {tuple(self.index.shape)} and {tuple(self.grad.shape)}"
            )
        if self.grad.shape != self.grad_squared.shape:
            raise ValueError(
                f"seeds: {name!r}: expected as many squares as gradients, got shapes"
                f" {tuple(self.grad.shape)} and {tuple(self.grad_squared.shape)}"
            )
        if not (self.index[1:] > self.index[:-1]).all():
            raise ValueError(f"seeds: {name!r}: its positions are not sorted and unique")
        first, last = int(self.index[0]), int(self.index[-1])
        if first < 0 or last >= entries:
            raise ValueError(
                f"seeds: {name!r}: expected positions from 0 to {entries - 1}, got {first} to"
                f" {last}"
            )
        if not self.grad.isfinite().all():
            raise ValueError(
                f"seeds: {name!r}: its gradients hold inf or NaN (of a step that overflowed?)"
            )
        if not ((self.grad_squared >= 0) & self.grad_squared.isfinite()).all():
            raise ValueError(f"seeds: {name!r}: its squares hold inf, NaN or numbers below 0")

    def _check_types(self, name: str) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, Integral):
            raise TypeError(f"seeds: {name!r}: expected a number of steps, got {self.steps!r}")
        for field in ("index", "grad", "grad_squared"):
            tensor = getattr(self, field)
            if not isinstance(tensor, torch.Tensor):
                got = described(tensor)
                raise TypeError(f"seeds: {name!r}: expected a tensor as {field}, got {got}")
        if self.index.dtype != torch.int64:
            raise TypeError(
                f"seeds: {name!r}: expected positions in torch.int64, got {self.index.dtype}"
            )

    def spread(self, positions: torch.Tensor) -> Seeded:
        """As tensors shaped as `positions`, the flat positions of new values."""
        index = self.index.to(positions.device)
        at = torch.searchsorted(index, positions).clamp_(max=index.numel() - 1)
        known = index[at] == positions
        grad = self.grad.to(positions.device)[at]
        grad_squared = self.grad_squared.to(positions.device)[at]
        return Seeded(known, grad * known, grad_squared * known, self.steps)
