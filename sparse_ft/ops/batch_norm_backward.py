"""batch_norm_backward: the gradient of an input that BatchNorm normalised by its running statistics."""

import torch

from . import _native
from ._library import define, implement, plain

SCHEMA = "batch_norm_backward(Tensor grad_output, Tensor? weight, Tensor running_var, float eps) -> Tensor"
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _check(grad_output, weight, running_var):
    if grad_output.dim() < 2:
        raise ValueError(f"grad_output: expected [N, C, ...], got shape {tuple(grad_output.shape)}")
    for name, tensor in (("grad_output", grad_output), ("weight", weight), ("running_var", running_var)):
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point dtype, got {tensor.dtype}")
    shape = grad_output.shape[1:2]
    for name, tensor in (("weight", weight), ("running_var", running_var)):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}")


def _rstd(grad_output, running_var, eps):
    """1 / sqrt(running_var + eps) as torch has it: on the CPU in fp64, rounded once to the dtype of the arithmetic."""
    wide = torch.promote_types(torch.float32, grad_output.dtype)
    return (1 / (running_var.to(torch.float64 if running_var.is_cpu else wide) + eps).sqrt()).to(wide)


def batch_norm_backward_ref(grad_output, weight, running_var, eps):
    _check(grad_output, weight, running_var)
    grad_output, shape = _dense(grad_output), (-1, *[1] * (grad_output.dim() - 2))
    grad_input = grad_output * _rstd(grad_output, running_var, eps).view(shape)
    if weight is not None:
        grad_input = grad_input * weight.to(grad_input.dtype).view(shape)
    return grad_input.to(grad_output.dtype)


def _dense(grad):
    """Contiguous, or channels last if it is that."""
    last = CHANNELS_LAST.get(grad.dim())
    return grad if last is not None and grad.is_contiguous(memory_format=last) else grad.contiguous()


def _fake(grad_output, weight, running_var, eps):
    _check(grad_output, weight, running_var)
    return torch.empty_like(_dense(grad_output))


def _extents(grad):
    """(outer, channels, inner) of the memory of a dense [N, C, ...]."""
    if grad.is_contiguous():
        return grad.size(0), grad.size(1), grad.shape[2:].numel()
    return grad.numel() // grad.size(1), grad.size(1), 1


def batch_norm_backward_cpu(grad_output, weight, running_var, eps):
    _check(grad_output, weight, running_var)
    dtypes = _native.DTYPES
    if not all(t is None or t.dtype in dtypes for t in (grad_output, weight, running_var)):
        return batch_norm_backward_ref(grad_output, weight, running_var, eps)
    grad_output, running_var = _dense(grad_output), running_var.contiguous()
    weight = weight if weight is None else weight.contiguous()
    grad_input = torch.empty_like(grad_output)
    _native.C.batch_norm_backward(
        grad_output.data_ptr(),
        dtypes[grad_output.dtype],
        *_extents(grad_output),
        running_var.data_ptr(),
        dtypes[running_var.dtype],
        *((0, 0) if weight is None else (weight.data_ptr(), dtypes[weight.dtype])),
        eps,
        grad_input.data_ptr(),
        torch.get_num_threads(),
    )
    return grad_input


def batch_norm_backward_triton(grad_output, weight, running_var, eps):
    from sparse_ft.kernels import batch_norm_backward as kernels

    grad_input = _fake(grad_output, weight, running_var, eps)
    grad_output, weight = _dense(grad_output), weight if weight is None else weight.contiguous()
    rstd = _rstd(grad_output, running_var, eps).contiguous()
    kernels.batch_norm_backward_triton(grad_output, rstd, weight, grad_input, *_extents(grad_output))
    return grad_input


define(SCHEMA, fake=_fake)
_batch_norm_backward = implement(
    "batch_norm_backward", reference=batch_norm_backward_ref, cpu=batch_norm_backward_cpu, triton=batch_norm_backward_triton
)


def batch_norm_backward(grad_output, weight, running_var, eps):
    """grad_input of `F.batch_norm(input, running_mean, running_var, weight, bias, False, eps=eps)`:
    `grad_output * rstd * weight` by channel, rstd = `1 / sqrt(running_var + eps)`.

    grad_output: [N, C, ...], floating point; contiguous or channels last, copied otherwise; the result is laid out alike.
    weight: [C] or None. running_var: [C]. Multiplied in fp32 (fp64 for fp64), twice, and rounded once to the dtype of
    grad_output. Raises ValueError or TypeError that names the argument.
    """
    if plain([t for t in (grad_output, weight, running_var) if t is not None]):
        return _batch_norm_backward(grad_output, weight, running_var, eps)
    return torch.ops.sparse_ft.batch_norm_backward(grad_output, weight, running_var, eps)
