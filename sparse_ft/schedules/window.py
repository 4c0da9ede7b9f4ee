"""Window: at every update the largest gradients count, and the others are zero (GMT, SIFT)."""

import warnings
from typing import Any

import torch
from torch import nn

from ..memory.table import readable
from ..salience.best import best
from ..salience.units import count_of
from .schedule import Schedule


class Window(Schedule):
    """Of every gradient the optimiser steps on, the share `density` of the largest stays.

    They are chosen among the gradients that have accumulated since the last update, tensor by
    tensor. The whole gradient is needed for that: this costs the memory of full fine-tuning, says
    so once, and is there because such methods are (GMT, Bi-Drop). Entries whose gradient is dropped
    move on by the optimiser's momentum and decay. Raises ValueError for another share.
    """

    def __init__(self, density: float, *, seed: int = 0):
        super().__init__()
        is_number = isinstance(density, (int, float)) and not isinstance(density, bool)
        if not is_number or not 0 < density <= 1:
            raise ValueError(f"density: expected a share in (0, 1], got {density!r}")
        self._density, self._seed = density, seed
        self._hook: Any = None

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> "Window":
        """Begin; the optimiser's steps see what is left of the gradients from now on."""
        if optimizer is None:
            raise ValueError("optimizer: Window chooses before each of its steps, got None")
        super().attach(model, optimizer)
        self.detach()
        self._hook = optimizer.register_step_pre_hook(self._choose)
        trained = [p for p in model.parameters() if p.requires_grad]
        taken = readable(sum(p.nbytes for p in trained))
        warnings.warn(
            f"Window: it needs the whole gradient of {len(trained)} parameters at every update,"
            f" {taken}, as full fine-tuning does",
            stacklevel=2,
        )
        return self

    def detach(self) -> None:
        """Let gradients be whole again."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _turn(self, model: nn.Module) -> None:
        return None

    @torch.no_grad()
    def _choose(self, optimizer: torch.optim.Optimizer, args: tuple, settings: dict) -> None:
        for group in optimizer.param_groups:
            for number, parameter in enumerate(group["params"]):
                if parameter.grad is not None and parameter.grad.layout is not torch.strided:
                    raise ValueError(
                        f"optimizer: its gradient of shape {tuple(parameter.shape)} is sparse, and"
                        " Window looks at whole ones; nn.Embedding(sparse=False) makes them"
                    )
                if parameter.grad is not None:
                    self._keep_largest(parameter.grad, self._seed + self.steps + number)

    def _keep_largest(self, gradient: torch.Tensor, seed: int) -> None:
        flat = gradient.reshape(-1)
        kept = best(flat.abs(), count_of(flat.numel(), self._density), seed)
        values = flat[kept]
        rest = torch.zeros_like(flat)
        rest[kept] = values
        gradient.copy_(rest.view_as(gradient))
