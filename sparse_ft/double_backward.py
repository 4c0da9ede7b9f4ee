"""Refusing what is not differentiable twice, as soon as it is asked for.

torch's `once_differentiable` raises where its error node is reached; calls that name their inputs
(`autograd.grad`) prune it, and a part of the second derivative would be missing without a word.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch


def refuse_double_backward(name: str) -> None:
    """Raise RuntimeError if the backward that runs now makes a graph of its own
    (create_graph=True).
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{name}: double backward (create_graph=True) is not supported; sft.revert(model) gives"
            " layers that do"
        )


def first_order(backward: Callable) -> Callable:
    """For the backward of a lean module's Function."""

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: torch.Tensor) -> Any:
        refuse_double_backward("a lean module")
        return backward(ctx, *grads)

    return checked
