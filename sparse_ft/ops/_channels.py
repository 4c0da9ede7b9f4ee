"""Tensors [N, C, ...] whose memory is walked in order, with numbers for each channel: what the ops
of BatchNorm share.
"""

import torch

from . import _native

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_LAST = {4: ((0, 2, 3, 1), (0, 3, 1, 2)), 5: ((0, 2, 3, 4, 1), (0, 4, 1, 2, 3))}  # there and back


def check(name, tensor, **of_channels):
    """tensor: [N, C, ...]; of_channels: [C] each, or None. Everything floating point."""
    if tensor.dim() < 2:
        raise ValueError(f"{name}: expected [N, C, ...], got shape {tuple(tensor.shape)}")
    of_channels = {key: t for key, t in of_channels.items() if t is not None}
    for key, t in ((name, tensor), *of_channels.items()):
        if not t.is_floating_point():
            raise TypeError(f"{key}: expected a floating-point dtype, got {t.dtype}")
    shape = tensor.shape[1:2]
    for key, t in of_channels.items():
        if t.shape != shape:
            raise ValueError(f"{key}: expected shape {tuple(shape)}, got {tuple(t.shape)}")


def in_order(tensor):
    """((there, back), a view that is contiguous) of a tensor that is channels last; (None, the
    tensor) of any other.
    """
    axes = _LAST.get(tensor.dim())
    if (
        axes is None
        or tensor.is_contiguous()
        or not tensor.is_contiguous(memory_format=CHANNELS_LAST[tensor.dim()])
    ):
        return None, tensor
    return axes, tensor.permute(axes[0])


def extents(tensor):
    """(outer, channels, inner) of the memory of [N, C, ...] that is contiguous, or
    channels last.
    """
    if tensor.is_contiguous():
        return tensor.size(0), tensor.size(1), tensor.shape[2:].numel()
    return tensor.numel() // tensor.size(1), tensor.size(1), 1


def by_channel(vector, tensor):
    """A [C] in the shape that broadcasts to `tensor`, in the dtype that its arithmetic has."""
    wide = torch.promote_types(torch.float32, tensor.dtype)
    return vector.to(wide).view(-1, *[1] * (tensor.dim() - 2))


def operand(vector):
    """(address, code of the dtype) of a contiguous [C] or None, for the compiled part."""
    return (0, 0) if vector is None else (vector.data_ptr(), _native.DTYPES[vector.dtype])


def contiguous(vector):
    return vector if vector is None else vector.contiguous()
