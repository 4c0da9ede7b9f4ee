"""A tensor that backward's signature asks for and its kernel never reads: shape and strides are kept, no memory."""

import torch


def hollow(tensor):
    """(shape, strides) of `tensor`, the strides without gaps: all that kernels look at when they choose a memory format."""
    return tensor.shape, torch.empty_like(tensor, device="meta").stride()


def stand_in(like, grad):
    """Uninitialised memory of shape and strides `like`, in dtype and on the device of `grad`; lives during one call."""
    return grad.new_empty_strided(*like)
