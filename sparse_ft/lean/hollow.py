"""A tensor that backward's signature asks for and its kernel never reads: shape and strides are kept, no memory."""

import torch


def hollow(tensor):
    """(shape, strides) of `tensor`, the strides without gaps: all that kernels look at when they choose a memory format."""
    if tensor.is_contiguous() or torch.compiler.is_compiling():  # which lays out memory itself, and strides of unknown sizes
        return tensor.shape, None
    return tensor.shape, torch.empty_like(tensor, device="meta").stride()


def stand_in(like, grad):
    """Uninitialised memory of shape and strides `like`, in dtype and on the device of `grad`; lives during one call."""
    shape, strides = like
    return grad.new_empty(shape) if strides is None else grad.new_empty_strided(shape, strides)
