"""Tensors [N, C, ...] whose memory is walked in order, with numbers for each channel: what the ops
of BatchNorm share.
"""

import torch
from torch import Tensor

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
    _check_dtype(name, tensor)
    shape = tensor.shape[1:2]
    for key, vector in of_channels.items():
        if vector is None:
            continue
        _check_dtype(key, vector)
        if vector.shape != shape:
            raise ValueError(f"{key}: expected shape {tuple(shape)}, got {tuple(vector.shape)}")


def _check_dtype(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point dtype, got {tensor.dtype}")


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


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic: fp32, or fp64 for fp64."""
    return torch.promote_types(torch.float32, dtype)


def contiguous(vector: Tensor | None) -> Tensor | None:
    return vector if vector is None else vector.contiguous()
