"""What of a masked_adamw_ step differs from entry to entry of one tensor.

generation and births: entries that joined a selection at different steps have ages of their own, by
which their moments are corrected for their start at zero. A byte an entry tells generations apart;
a table holds the number of steps that the tensor had taken when each began.

factor: the update of an entry, decay included, is multiplied with it, as its learning rate would
be; a scaled gradient changes nothing under Adam. origin: what weight decay pulls towards, for
methods that train the difference to it.
"""

import torch

from . import _native
from ._adamw_tensor import AdamWTensor
from ._common import check_floating

MOST_GENERATIONS = 256


def ages_of(t: AdamWTensor) -> float | torch.Tensor:
    """How many steps the entries of `t` have taken: one number, or (fp64, like value) one for
    each.
    """
    if t.generation is None or t.births is None:
        return t.step.item()
    return (t.step.double() - t.births.double())[t.generation.long()]


def factor_of(t: AdamWTensor, p: torch.Tensor) -> torch.Tensor | None:
    """The factor as it is multiplied with `p`, the value in the dtype that it steps in."""
    if t.factor is None:
        return None
    missing = p.dim() - t.factor.dim()
    return t.factor.to(p.dtype).view([*t.factor.shape, *[1] * missing])


def check_variation(t: AdamWTensor) -> None:
    """Raise ValueError or TypeError that names what does not go with the value."""
    shape = tuple(t.value.shape)
    if (t.generation is None) != (t.births is None):
        raise ValueError("births: expected with generations, and only with them")
    if t.generation is not None and t.births is not None:
        _check("generations", t.generation, torch.uint8, shape)
        count = t.births.numel()
        _check("births", t.births, torch.float32, (count,))
        if count > MOST_GENERATIONS:
            raise ValueError(f"births: expected at most {MOST_GENERATIONS}, got {count}")
    if t.factor is not None:
        by_first = tuple(t.factor.shape) == shape[:1]
        _check("factors", t.factor, torch.float32, shape[:1] if by_first else shape)
    if t.origin is not None:
        check_floating("origins", t.origin)
        _check("origins", t.origin, t.origin.dtype, shape)


def _check(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise ValueError(
            f"{name}: expected {dtype} {shape} as its values have it, got"
            f" {tensor.dtype} {tuple(tensor.shape)}"
        )


def variation_lies_alike(t: AdamWTensor) -> bool:
    """Whether the walk through the values meets what varies, in dtypes that the compiled part
    knows.
    """
    check_variation(t)
    stride = t.value.stride()
    if t.generation is not None and t.generation.stride() != stride:
        return False
    if t.births is not None and not t.births.is_contiguous():
        return False
    if t.origin is not None:
        if t.origin.stride() != stride or t.origin.dtype not in _native.DTYPES:
            return False
    if t.factor is None:
        return True
    if t.factor.shape == t.value.shape:
        return t.factor.stride() == stride
    return t.factor.is_contiguous() and t.value.is_contiguous()
