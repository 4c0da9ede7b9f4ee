"""Tensors [N, C, ...] whose memory is walked in order, with numbers for each channel: what the ops
of BatchNorm share.
"""

import torch
from torch import Tensor

from ._common import accumulator, check_floating, check_shape

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

Axes = tuple[int, ...]
# By dimensions: the axes that make what is channels last contiguous, and those that undo it.
_LAST: dict[int, tuple[Axes, Axes]] = {
    4: ((0, 2, 3, 1), (0, 3, 1, 2)),
    5: ((0, 2, 3, 4, 1), (0, 4, 1, 2, 3)),
}


def check(name: str, tensor: Tensor, **of_channels: Tensor | None) -> None:
    """tensor: [N, C, ...]; of_channels: [C] each, or None. Everything floating point."""
    if tensor.dim() < 2:
        raise ValueError(f"{name}: expected [N, C, ...], got shape {tuple(tensor.shape)}")
    check_floating(name, tensor)
    for key, vector in of_channels.items():
        if vector is not None:
            check_floating(key, vector)
            check_shape(key, vector, tensor.shape[1:2])


def is_channels_last(tensor: Tensor) -> bool:
    """Whether its memory has the channels innermost, and no gaps."""
    last = CHANNELS_LAST.get(tensor.dim())
    return last is not None and tensor.is_contiguous(memory_format=last)


def in_order(tensor: Tensor) -> tuple[tuple[Axes, Axes] | None, Tensor]:
    """((there, back), a view that is contiguous) of a tensor that is channels last; (None, the
    tensor) of any other.
    """
    axes = _LAST.get(tensor.dim())
    if axes is None or tensor.is_contiguous():
        return None, tensor
    if not tensor.is_contiguous(memory_format=CHANNELS_LAST[tensor.dim()]):
        return None, tensor
    there, _ = axes
    return axes, tensor.permute(there)


def by_channel(vector: Tensor, tensor: Tensor) -> Tensor:
    """A [C] in the shape that broadcasts to `tensor`, in the dtype that its arithmetic has."""
    return vector.to(accumulator(tensor.dtype)).view(-1, *[1] * (tensor.dim() - 2))
