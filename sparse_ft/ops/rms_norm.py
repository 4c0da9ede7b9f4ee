"""rms_norm: every row of the input divided by its root mean square (Zhang & Sennrich, 2019), and
the gradient of the input.
"""

import torch
from torch import Tensor

from . import _native
from ._library import refuse_layout
from ._registry import op
from ._rows import as_rows


def _wide(input: Tensor, weight: Tensor | None) -> torch.dtype:
    """The dtype of the arithmetic and of rstd."""
    return torch.promote_types(torch.float32, _common(input, weight))


def _common(input: Tensor, weight: Tensor | None) -> torch.dtype:
    return input.dtype if weight is None else torch.result_type(input, weight)


def _check(input: Tensor, weight: Tensor | None) -> None:
    if input.dim() < 1:
        raise ValueError(f"input: expected [..., F], got shape {tuple(input.shape)}")
    if not input.is_floating_point():
        raise TypeError(f"input: expected a floating-point dtype, got {input.dtype}")
    if weight is None:
        return
    if weight.shape != input.shape[-1:]:
        raise ValueError(
            f"weight: expected shape {tuple(input.shape[-1:])}, got {tuple(weight.shape)}"
        )
    if not weight.is_floating_point():
        raise TypeError(f"weight: expected a floating-point dtype, got {weight.dtype}")


def _shapes(
    input: Tensor, weight: Tensor | None, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    _check(input, weight)
    dtype = dtype or _common(input, weight)
    if not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating-point dtype, got {dtype}")
    output = input.new_empty(input.shape, dtype=dtype)
    return output, input.new_empty(input.shape[:-1], dtype=_wide(input, weight))


def _backward_shapes(
    grad_output: Tensor, input: Tensor, rstd: Tensor, weight: Tensor | None
) -> Tensor:
    _check(input, weight)
    if grad_output.shape != input.shape:
        raise ValueError(
            f"grad_output: expected the shape of input, {tuple(input.shape)}, got"
            f" {tuple(grad_output.shape)}"
        )
    if not grad_output.is_floating_point():
        raise TypeError(f"grad_output: expected a floating-point dtype, got {grad_output.dtype}")
    if rstd.shape != input.shape[:-1]:
        raise ValueError(f"rstd: expected shape {tuple(input.shape[:-1])}, got {tuple(rstd.shape)}")
    if rstd.dtype != _wide(input, weight):
        raise TypeError(f"rstd: expected {_wide(input, weight)}, got {rstd.dtype}")
    return input.new_empty(input.shape)


def _cpu(
    input: Tensor, weight: Tensor | None, eps: float, offset: float, output: Tensor, rstd: Tensor
) -> None:
    weight = weight if weight is None else weight.contiguous()
    (input,) = as_rows(input)
    _native.C.rms_norm(input, weight, eps, offset, output, rstd, torch.get_num_threads())


def _backward_cpu(
    grad_output: Tensor,
    input: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    offset: float,
    grad_input: Tensor,
) -> None:
    weight, rstd = weight if weight is None else weight.contiguous(), rstd.contiguous()
    grad_output, input = as_rows(grad_output, input)
    threads = torch.get_num_threads()
    _native.C.rms_norm_backward(grad_output, input, rstd, weight, offset, grad_input, threads)


def _refuse_nested(input: Tensor, weight: Tensor | None) -> None:
    """Jagged tensors have an op of that name themselves, which takes no dtype."""
    if input.is_nested:
        refuse_layout("input", input)
    if weight is not None and weight.is_nested:
        refuse_layout("weight", weight)


def _scaled(x: Tensor, weight: Tensor | None, offset: float) -> Tensor:
    return x if weight is None else x * (offset + weight.to(x.dtype))


@op(
    "rms_norm(Tensor input, Tensor? weight, float eps, float offset, *, ScalarType? dtype=None) ->"
    " (Tensor output, Tensor rstd)",
    shapes=_shapes,
    cpu=_cpu,
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
    x = input.to(_wide(input, weight))
    rstd = (x.square().mean(-1) + eps).rsqrt()
    output = _scaled(x * rstd[..., None], weight, offset)
    return output.to(dtype or _common(input, weight)).contiguous(), rstd.contiguous()


@op(
    "rms_norm_backward(Tensor grad_output, Tensor input, Tensor rstd, Tensor? weight, float offset)"
    " -> Tensor grad_input",
    shapes=_backward_shapes,
    cpu=_backward_cpu,
    triton="rms_norm.rms_norm_backward_triton",
)
def rms_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    rstd: Tensor,
    weight: Tensor | None = None,
    offset: float = 0.0,
) -> Tensor:
    """grad_input of `rms_norm`, in the dtype of input: with g = `grad_output * (offset + weight)`
    and n = `input * rstd`, `rstd * (g - n * mean(g * n))`.

    grad_output: [..., F]. rstd: [...], as `rms_norm` gave it. Raises ValueError or TypeError that
    names the argument.
    """
    grad = _scaled(grad_output.to(rstd.dtype), weight, offset)
    normed = input.to(rstd.dtype) * rstd[..., None]
    grad_input = rstd[..., None] * (grad - normed * (grad * normed).mean(-1, keepdim=True))
    return grad_input.to(input.dtype).contiguous()
