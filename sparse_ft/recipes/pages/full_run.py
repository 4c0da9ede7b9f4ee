"""A short run of full fine-tuning that a recipe looks at, and rewinds."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from ...salience.losses import checked
from ..settings import check_count, check_lr
from ..values import cycled

T = TypeVar("T")


class Buffers:
    """What the buffers of a model hold now: forwards in training change those of batch norms."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = [(buffer, buffer.clone()) for buffer in model.buffers()]

    @torch.no_grad()
    def restore(self) -> None:
        """Let them hold it again."""
        for buffer, before in self._kept:
            buffer.copy_(before)


def after_training(
    model: nn.Module,
    names: Iterable[str],
    batches: Any,
    act: Callable[[dict[str, torch.Tensor]], T],
    *,
    loss: Any,
    steps: int,
    lr: float,
    rewind: bool = True,
) -> T:
    """What `act({name: the weight before})` returns after `steps` steps on these parameters alone.

    AdamW without decay, the batches in turn, the gradient's norm clipped to 1. Costs what full
    fine-tuning of them costs. Afterwards flags and buffers are as they were, gradients are gone,
    and every bit of the weights is back, after an exception too; rewind=False: but for the weights,
    unless there was one.
    """
    check_count("steps", steps)
    check_lr("lr", lr)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    weights = {name: model.get_parameter(name) for name in names}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    take, turns, buffers = checked(loss), cycled(batches), Buffers(model)
    is_done = False
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in weights)
        optimizer = torch.optim.AdamW(list(weights.values()), lr, weight_decay=0.0)
        for _ in range(steps):
            take(model, next(turns)).backward()
            torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        result = act(before)
        is_done = True
        return result
    finally:
        buffers.restore()
        with torch.no_grad():
            for name, weight in weights.items():
                weight.grad = None
                if rewind or not is_done:
                    weight.copy_(before[name])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
