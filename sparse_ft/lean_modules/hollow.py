"""A tensor that backward's signature asks for and its kernel never reads.

Shape and strides are kept, no memory.
"""

import torch

from .._torch import hooks_in_force, is_compiling, saved_input
from ..ops._library import plain

# Shape, and strides where they are not those of a contiguous tensor.
Hollow = tuple[torch.Size, tuple[int, ...] | None]


def hollow(tensor: torch.Tensor) -> Hollow:
    """(shape, strides) of `tensor`, the strides without gaps.

    All that kernels look at when they choose a memory format.
    """
    # A compiler lays out memory itself, and strides of unknown sizes.
    if tensor.is_contiguous() or is_compiling():
        return tensor.shape, None
    return tensor.shape, torch.empty_like(tensor, device="meta").stride()


def stand_in(like: Hollow, grad: torch.Tensor) -> torch.Tensor:
    """Uninitialised memory of shape and strides `like`, in dtype and on the device of `grad`.

    Lives during one call.
    """
    shape, strides = like
    return grad.new_empty(shape) if strides is None else grad.new_empty_strided(shape, strides)


def may_forget(input: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `forget_input` serves.

    Hooks in force have its place, and autocast would have torch keep a copy of the weight.
    """
    return (
        plain((input, weight)) and not torch.is_autocast_enabled("cpu") and hooks_in_force() is None
    )


def forget_input(output: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`output`, whose node, torch's own, keeps a `hollow` for its input from now on.

    A tenth of a Function's host time.
    """
    saved = saved_input(output.grad_fn)  # nothing is saved where nothing needs a gradient
    if saved is not None:
        saved.register_hooks(hollow, lambda like: stand_in(like, weight))
    return output
