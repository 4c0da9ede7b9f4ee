"""conductance: how much of the change from an empty to the whole input flows through each layer
(RAM, after Dhamdhere et al. 2018).
"""

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ...trees import leaves
from ..job import Batches
from ..losses import Loss, checked
from ..untouched import Untouched, untouched
from .layers import layers_of


def conductance(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    layers: str | Iterable[str] | None = None,
    loss: Loss | None = None,
    steps: int = 8,
    max_batches: int | None = None,
) -> dict[str, float]:
    """{layer: |Σ over the path of ∂loss/∂output · Δoutput|}, the mean over the batches.

    The path goes from an empty input, all of whose embeddings (floating-point inputs where there
    are none) are zero, to the input itself, in `steps` equal steps; a step takes the mean of the
    gradients at its ends (trapezoids), so that the conductances of a layer through which
    everything flows tend to the difference of the loss. layers: as in `total`. Memory: two outputs
    of every layer beside a training step's activations. The model is left as it was. Raises
    ValueError that names the argument.
    """
    if not (isinstance(steps, int) and steps > 0):
        raise ValueError(f"steps: expected a positive int, got {steps!r}")
    path = _Path(model, layers_of(model, layers), checked(loss), steps)
    untouched(model, functools.partial(path.run, Batches(batches, max_batches)))
    if not path.seen:
        raise ValueError("batches: expected at least one batch, got none")
    return {name: abs(total) / path.seen for name, total in path.totals.items()}


class _Path:
    """Goes along from nothing to the input."""

    def __init__(self, model: nn.Module, layers: dict[str, nn.Module], loss: Loss, steps: int):
        self._model, self._layers, self._loss, self._steps = model, layers, loss, steps
        self.totals = dict.fromkeys(layers, 0.0)
        self.seen = 0
        self._share = 0.0
        self._outputs: dict[str, torch.Tensor] = {}

    def run(self, batches: Batches, saved: Untouched) -> None:
        inputs = [m for m in self._model.modules() if isinstance(m, nn.Embedding)]
        saved.stand_ins({})
        for embedding in inputs:
            saved.also(embedding.register_forward_hook(self._shrink_output).remove)
        if not inputs:
            shrink = self._model.register_forward_pre_hook(self._shrink_input, with_kwargs=True)
            saved.also(shrink.remove)
        for name, module in self._layers.items():
            hook = functools.partial(self._see, name)
            saved.also(module.register_forward_hook(hook).remove)
        for batch in batches:
            self._along(batch)
            self.seen += 1

    def _along(self, batch: Any) -> None:
        before = None
        for number in range(self._steps + 1):
            self._share = number / self._steps
            self._outputs = {}
            loss = self._loss(self._model, batch)
            names = list(self._outputs)
            outputs = list(self._outputs.values())
            slopes = torch.autograd.grad(loss, outputs, allow_unused=True)
            here = {
                name: (output.detach(), torch.zeros_like(output) if slope is None else slope)
                for name, output, slope in zip(names, outputs, slopes)
            }
            if before is not None:
                self._add(before, here)
            before = here

    def _add(self, before: dict, here: dict) -> None:
        for name, (output, slope) in here.items():
            old, slope_before = before[name]
            slope_between = (slope + slope_before) / 2
            change = (slope_between * (output - old)).sum(dtype=torch.float64)
            self.totals[name] += float(change)

    def _shrink(self, tensor: torch.Tensor) -> torch.Tensor:
        return (tensor * self._share).detach().requires_grad_()

    def _shrink_output(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> Any:
        return self._shrink(output)

    def _shrink_input(self, module: nn.Module, inputs: tuple, settings: dict) -> tuple[tuple, dict]:
        def shrunk(value: Any) -> Any:
            is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
            return self._shrink(value) if is_float else value

        return tuple(map(shrunk, inputs)), {k: shrunk(v) for k, v in settings.items()}

    def _see(self, name: str, module: nn.Module, inputs: tuple, output: Any) -> None:
        tensors = [t for t in leaves(output) if isinstance(t, torch.Tensor)]
        if tensors and tensors[0].requires_grad:
            self._outputs[name] = tensors[0]
