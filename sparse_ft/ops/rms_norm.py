"""rms_norm: every row of the input divided by its root mean square (Zhang & Sennrich, 2019)."""

import torch
from torch import Tensor

from ._common import accumulator, check_floating, check_shape
from ._library import refuse_layout
from ._registry import Compiled, op


def wide_dtype(input: Tensor, weight: Tensor | None) -> torch.dtype:
    """The dtype of the arithmetic and of rstd."""
    return accumulator(_common_dtype(input, weight))


def _common_dtype(input: Tensor, weight: Tensor | None) -> torch.dtype:
    return input.dtype if weight is None else torch.result_type(input, weight)


def check(input: Tensor, weight: Tensor | None) -> None:
    if input.dim() < 1:
        raise ValueError(f"input: expected [..., F], got shape {tuple(input.shape)}")
    check_floating("input", input)
    if weight is not None:
        check_shape("weight", weight, input.shape[-1:])
        check_floating("weight", weight)


def _shapes(
    input: Tensor, weight: Tensor | None, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    check(input, weight)
    dtype = dtype or _common_dtype(input, weight)
    if not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating-point dtype, got {dtype}")
    output = input.new_empty(input.shape, dtype=dtype)
    return output, input.new_empty(input.shape[:-1], dtype=wide_dtype(input, weight))


def _refuse_nested(input: Tensor, weight: Tensor | None) -> None:
    """Jagged tensors have an op of that name themselves, which takes no dtype."""
    if input.is_nested:
        refuse_layout("input", input)
    if weight is not None and weight.is_nested:
        refuse_layout("weight", weight)


def scaled(x: Tensor, weight: Tensor | None, offset: float) -> Tensor:
    return x if weight is None else x * (offset + weight.to(x.dtype))


@op(
    "rms_norm(Tensor input, Tensor? weight, float eps, float offset, *, ScalarType? dtype=None) ->"
    " (Tensor output, Tensor rstd)",
    shapes=_shapes,
    cpu=Compiled(rows=("input",)),
    triton="rms_norm.rms_norm_triton",
    before=_refuse_nested,
)
def rms_norm(
    input: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    offset: float = 0.0,
    *,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(`input * rstd * (offset + weight)`, rstd), rstd = `1 / sqrt(mean(input²) + eps)` over the
    last dimension.

    input: [..., F], floating point. weight: [F] or None, which leaves the factor (and offset) out;
    Gemma's offset is 1. All in fp32 (fp64 where either is), rounded once to `dtype` (default:
    `torch.result_type(input, weight)`); rstd [...] is not rounded. Both contiguous. Not
    differentiable: see `rms_norm_backward`. Raises ValueError or TypeError that names the argument.
    """
    x = input.to(wide_dtype(input, weight))
    rstd = (x.square().mean(-1) + eps).rsqrt()
    output = scaled(x * rstd[..., None], weight, offset)
    return output.to(dtype or _common_dtype(input, weight)).contiguous(), rstd.contiguous()
