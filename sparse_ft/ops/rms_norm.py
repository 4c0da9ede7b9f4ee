"""rms_norm: every row of the input divided by its root mean square (Zhang & Sennrich, 2019), and
the gradient of the input.
"""

import torch

from . import _native
from ._library import define, implement, refuse_layout
from ._rows import as_rows, rows

SCHEMA = (
    "rms_norm(Tensor input, Tensor? weight, float eps, float offset, *, ScalarType? dtype=None) ->"
    " (Tensor output, Tensor rstd)"
)
BACKWARD_SCHEMA = (
    "rms_norm_backward(Tensor grad_output, Tensor input, Tensor rstd, Tensor? weight, float offset)"
    " -> Tensor grad_input"
)


def _wide(input, weight):
    """The dtype of the arithmetic and of rstd."""
    return torch.promote_types(
        torch.float32, input.dtype if weight is None else torch.result_type(input, weight)
    )


def _check(input, weight):
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


def _check_backward(grad_output, input, rstd, weight):
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


def _scaled(x, weight, offset):
    return x if weight is None else x * (offset + weight.to(x.dtype))


def rms_norm_ref(input, weight, eps, offset, *, dtype=None):
    output, _ = _fake(input, weight, eps, offset, dtype=dtype)
    x = input.to(_wide(input, weight))
    rstd = (x.square().mean(-1) + eps).rsqrt()
    return (
        _scaled(x * rstd[..., None], weight, offset).to(output.dtype).contiguous(),
        rstd.contiguous(),
    )


def rms_norm_backward_ref(grad_output, input, rstd, weight, offset):
    _check_backward(grad_output, input, rstd, weight)
    grad = _scaled(grad_output.to(rstd.dtype), weight, offset)
    normed = input.to(rstd.dtype) * rstd[..., None]
    grad_input = rstd[..., None] * (grad - normed * (grad * normed).mean(-1, keepdim=True))
    return grad_input.to(input.dtype).contiguous()


def _fake(input, weight, eps, offset, *, dtype=None):
    _check(input, weight)
    dtype = dtype or (input.dtype if weight is None else torch.result_type(input, weight))
    if not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating-point dtype, got {dtype}")
    return input.new_empty(input.shape, dtype=dtype), input.new_empty(
        input.shape[:-1], dtype=_wide(input, weight)
    )


def _backward_fake(grad_output, input, rstd, weight, offset):
    _check_backward(grad_output, input, rstd, weight)
    return input.new_empty(input.shape)


def _served(*tensors):
    return all(t is None or t.dtype in _native.DTYPES for t in tensors)


def _weight(weight):
    """Address and dtype code; 0 where there is none."""
    return (0, 0) if weight is None else (weight.data_ptr(), _native.DTYPES[weight.dtype])


def rms_norm_cpu(input, weight, eps, offset, *, dtype=None):
    output, rstd = _fake(input, weight, eps, offset, dtype=dtype)
    if not _served(input, weight, output):
        return rms_norm_ref(input, weight, eps, offset, dtype=dtype)
    weight = weight if weight is None else weight.contiguous()
    shape, (input,) = as_rows(input, flat=False)
    _native.C.rms_norm(
        *rows(input),
        _native.DTYPES[input.dtype],
        *_weight(weight),
        *shape,
        eps,
        offset,
        output.data_ptr(),
        _native.DTYPES[output.dtype],
        rstd.data_ptr(),
        _native.DTYPES[rstd.dtype],
        torch.get_num_threads(),
    )
    return output, rstd


def rms_norm_backward_cpu(grad_output, input, rstd, weight, offset):
    grad_input = _backward_fake(grad_output, input, rstd, weight, offset)
    if not _served(grad_output, input, weight):
        return rms_norm_backward_ref(grad_output, input, rstd, weight, offset)
    weight, rstd = weight if weight is None else weight.contiguous(), rstd.contiguous()
    shape, (grad_output, input) = as_rows(grad_output, input, flat=False)
    _native.C.rms_norm_backward(
        *rows(grad_output),
        _native.DTYPES[grad_output.dtype],
        *rows(input),
        _native.DTYPES[input.dtype],
        rstd.data_ptr(),
        _native.DTYPES[rstd.dtype],
        *_weight(weight),
        *shape,
        offset,
        grad_input.data_ptr(),
        torch.get_num_threads(),
    )
    return grad_input


def rms_norm_triton(input, weight, eps, offset, *, dtype=None):
    from sparse_ft.kernels import rms_norm as kernels

    output, rstd = _fake(input, weight, eps, offset, dtype=dtype)
    kernels.rms_norm_triton(input, weight, eps, offset, output, rstd)
    return output, rstd


def rms_norm_backward_triton(grad_output, input, rstd, weight, offset):
    from sparse_ft.kernels import rms_norm as kernels

    grad_input = _backward_fake(grad_output, input, rstd, weight, offset)
    kernels.rms_norm_backward_triton(grad_output, input, rstd, weight, offset, grad_input)
    return grad_input


define(SCHEMA, fake=_fake)
implement("rms_norm", reference=rms_norm_ref, cpu=rms_norm_cpu, triton=rms_norm_triton)
define(BACKWARD_SCHEMA, fake=_backward_fake)
implement(
    "rms_norm_backward",
    reference=rms_norm_backward_ref,
    cpu=rms_norm_backward_cpu,
    triton=rms_norm_backward_triton,
)


def rms_norm(input, weight=None, eps=1e-6, offset=0.0, *, dtype=None):
    """(`input * rstd * (offset + weight)`, rstd), rstd = `1 / sqrt(mean(input²) + eps)` over the
    last dimension.

    input: [..., F], floating point. weight: [F] or None, which leaves the factor (and offset) out;
    Gemma's offset is 1. All in fp32 (fp64 where either is), rounded once to `dtype` (default:
    `torch.result_type(input, weight)`); rstd [...] is not rounded. Both contiguous. Not
    differentiable: see `rms_norm_backward`. Raises ValueError or TypeError that names the argument.
    """
    if input.is_nested:  # jagged tensors have an op of that name themselves, which takes no dtype
        refuse_layout("input", input)
    if weight is not None and weight.is_nested:
        refuse_layout("weight", weight)
    return torch.ops.sparse_ft.rms_norm(input, weight, eps, offset, dtype=dtype)


def rms_norm_backward(grad_output, input, rstd, weight=None, offset=0.0):
    """grad_input of `rms_norm`, in the dtype of input: with g = `grad_output * (offset + weight)`
    and n = `input * rstd`, `rstd * (g - n * mean(g * n))`.

    grad_output: [..., F]. rstd: [...], as `rms_norm` gave it. Raises ValueError or TypeError that
    names the argument.
    """
    return torch.ops.sparse_ft.rms_norm_backward(grad_output, input, rstd, weight, offset)
