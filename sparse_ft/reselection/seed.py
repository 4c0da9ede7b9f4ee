"""Seed: moments that entries begin with when they join a selection."""

import dataclasses

import torch

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

    def check(self, name: str) -> None:
        """Raise ValueError for what cannot be a seed of the parameter `name`."""
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

    def spread(self, positions: torch.Tensor) -> Seeded:
        """As tensors shaped as `positions`, the flat positions of new values."""
        index = self.index.to(positions.device)
        at = torch.searchsorted(index, positions).clamp_(max=index.numel() - 1)
        known = index[at] == positions
        grad = self.grad.to(positions.device)[at]
        grad_squared = self.grad_squared.to(positions.device)[at]
        return Seeded(known, grad * known, grad_squared * known, self.steps)
