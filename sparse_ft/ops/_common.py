"""What the pages share: checks whose errors name the argument, and the dtype of the arithmetic."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Features, each of 2 bytes or more, of which a multiple fills whole 16 bytes: on these each token
# of an operand of a GPU's fast products starts.
WHOLE = 8


def check_floating(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point dtype, got {tensor.dtype}")


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}")


def check_count(name: str, items: Sequence, count: int, of: str) -> None:
    """Of lists that have an item for each tensor of the list `of`."""
    if len(items) != count:
        raise ValueError(f"{name}: expected {count} items, one a tensor of {of}, got {len(items)}")


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic: fp32, or fp64 for fp64."""
    return torch.promote_types(torch.float32, dtype)
