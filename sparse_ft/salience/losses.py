"""The loss that gradients are taken of: the caller's or the model's own, checked where it comes
out.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..messages import described

Loss = Callable[[nn.Module, Any], torch.Tensor]
_WAY_OUT = "pass loss=lambda model, batch: … that gives a scalar"


def check_batches(batches: Any) -> None:
    """Raise TypeError unless `batches` is an iterable of batches rather than one batch."""
    if isinstance(batches, (Mapping, str)):
        raise TypeError(
            f"batches: expected an iterable of batches, got {described(batches)}; pass"
            " batches=[batch]"
        )
    if not hasattr(batches, "__iter__"):
        raise TypeError(f"batches: expected an iterable of batches, got {described(batches)}")


def checked(loss: Loss | None, by_example: bool = False) -> Loss:
    """`loss`, or the model's own for None, with errors that say what came instead of a scalar that
    can train. by_example: it may also give one number an example.
    """
    take = loss or _own_loss

    def checked_loss(model: nn.Module, batch: Any) -> torch.Tensor:
        value = take(model, batch)
        is_scalar = isinstance(value, torch.Tensor) and value.numel() == 1
        is_vector = by_example and isinstance(value, torch.Tensor) and value.dim() == 1
        if not is_scalar and not is_vector:
            raise TypeError(f"loss: expected a scalar tensor, got {described(value)}")
        if not value.requires_grad:
            raise ValueError(
                "loss: it does not depend on any targeted weight; is there a torch.no_grad(),"
                " .detach() or .item() on the way?"
            )
        return value

    return checked_loss


def _own_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """`model(**batch).loss`, as transformers' models have it."""
    if not isinstance(batch, Mapping):
        raise TypeError(
            "batches: without loss=, a batch is a dict of the model's arguments, got"
            f" {described(batch)}; {_WAY_OUT}"
        )
    output = model(**batch)
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if loss is None:
        given = ", ".join(map(str, batch))
        raise ValueError(
            f"loss: the model returned none, but {described(output)} for a batch with {given}; add"
            f" the labels to the batches, or {_WAY_OUT}"
        )
    return loss
