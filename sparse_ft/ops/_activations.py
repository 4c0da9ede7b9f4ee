"""The activations that `activation` and `gated_product` know, in plain PyTorch, and the checks that
both make.
"""

import functools
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import accumulator, check_floating

_aten = torch.ops.aten

# name -> (the function, (grad_output, input) -> grad_input)
ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "silu": (F.silu, _aten.silu_backward),
    "gelu": (F.gelu, _aten.gelu_backward),
    "gelu_tanh": (
        functools.partial(F.gelu, approximate="tanh"),
        functools.partial(_aten.gelu_backward, approximate="tanh"),
    ),
    "relu": (F.relu, functools.partial(_aten.threshold_backward, threshold=0)),
}


def check(activation: str, known: Iterable[str] = ACTIVATIONS, **tensors: Tensor) -> None:
    """The activation is among the `known`; the tensors have one shape and floating-point dtype,
    that of the first.
    """
    if activation not in known:
        raise ValueError(f"activation: expected one of {', '.join(known)}, got {activation!r}")
    (first, given), *others = tensors.items()
    check_floating(first, given)
    for name, other in others:
        if other.shape != given.shape:
            raise ValueError(
                f"{name}: expected the shape of {first}, {tuple(given.shape)}, got"
                f" {tuple(other.shape)}"
            )
        if other.dtype != given.dtype:
            raise TypeError(
                f"{name}: expected the dtype of {first}, {given.dtype}, got {other.dtype}"
            )


def widened(tensor: Tensor) -> Tensor:
    """In the dtype of the arithmetic: fp32, or fp64 for fp64."""
    return tensor.to(accumulator(tensor.dtype))
