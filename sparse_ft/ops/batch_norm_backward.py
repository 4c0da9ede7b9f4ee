"""batch_norm_backward: the gradient of an input that BatchNorm normalised by its running
statistics, perhaps before a ReLU.
"""

import torch

from . import _native
from ._channels import CHANNELS_LAST, by_channel, check, contiguous, extents, in_order, operand
from ._library import define, implement, plain
from .positive_bits import where_bits_ref

SCHEMA = (
    "batch_norm_backward(Tensor grad_output, Tensor? weight, Tensor running_var, float eps, Tensor?"
    " positive=None) -> Tensor"
)


def _check(grad_output, weight, running_var, positive):
    check("grad_output", grad_output, weight=weight, running_var=running_var)
    if positive is None:
        return
    if positive.dtype != torch.uint8:
        raise TypeError(f"positive: expected torch.uint8, got {positive.dtype}")
    shape = ((grad_output.numel() + 7) // 8,)
    if positive.shape != shape:
        raise ValueError(
            f"positive: expected shape {shape}, one bit an element, got {tuple(positive.shape)}"
        )


def _rstd(grad_output, running_var, eps):
    """1 / sqrt(running_var + eps) as torch has it: on the CPU in fp64, rounded once to the dtype of
    the arithmetic.
    """
    wide = torch.promote_types(torch.float32, grad_output.dtype)
    return (1 / (running_var.to(torch.float64 if running_var.is_cpu else wide) + eps).sqrt()).to(
        wide
    )


def batch_norm_backward_ref(grad_output, weight, running_var, eps, positive=None):
    _check(grad_output, weight, running_var, positive)
    grad = _dense(grad_output)
    if positive is not None:
        axes, ordered = in_order(grad)
        passed = where_bits_ref(ordered, positive, 1.0)
        grad = passed if axes is None else passed.permute(axes[1])
    grad_input = grad * by_channel(_rstd(grad, running_var, eps), grad)
    if weight is not None:
        grad_input = grad_input * by_channel(weight, grad)
    return grad_input.to(grad.dtype)


def _dense(grad):
    """Contiguous, or channels last if it is that."""
    last = CHANNELS_LAST.get(grad.dim())
    return (
        grad if last is not None and grad.is_contiguous(memory_format=last) else grad.contiguous()
    )


def _fake(grad_output, weight, running_var, eps, positive=None):
    _check(grad_output, weight, running_var, positive)
    return torch.empty_like(_dense(grad_output))


def batch_norm_backward_cpu(grad_output, weight, running_var, eps, positive=None):
    _check(grad_output, weight, running_var, positive)
    if not all(t is None or t.dtype in _native.DTYPES for t in (grad_output, weight, running_var)):
        return batch_norm_backward_ref(grad_output, weight, running_var, eps, positive)
    grad_output, weight, running_var, positive = (
        _dense(grad_output),
        *(contiguous(t) for t in (weight, running_var, positive)),
    )
    grad_input = torch.empty_like(grad_output)
    _native.C.batch_norm_backward(
        grad_output.data_ptr(),
        _native.DTYPES[grad_output.dtype],
        *extents(grad_output),
        *operand(running_var),
        *operand(weight),
        eps,
        0 if positive is None else positive.data_ptr(),
        grad_input.data_ptr(),
        torch.get_num_threads(),
    )
    return grad_input


def batch_norm_backward_triton(grad_output, weight, running_var, eps, positive=None):
    from sparse_ft.kernels import batch_norm_backward as kernels

    grad_input = _fake(grad_output, weight, running_var, eps, positive)
    grad_output, rstd = _dense(grad_output), _rstd(grad_output, running_var, eps).contiguous()
    kernels.batch_norm_backward_triton(
        grad_output,
        rstd,
        contiguous(weight),
        contiguous(positive),
        grad_input,
        *extents(grad_output),
    )
    return grad_input


define(SCHEMA, fake=_fake)
_batch_norm_backward = implement(
    "batch_norm_backward",
    reference=batch_norm_backward_ref,
    cpu=batch_norm_backward_cpu,
    triton=batch_norm_backward_triton,
)


def batch_norm_backward(grad_output, weight, running_var, eps, positive=None):
    """grad_input of `F.batch_norm(input, running_mean, running_var, weight, bias, False, eps=eps)`:
    `grad_output * rstd * weight` by channel, rstd = `1 / sqrt(running_var + eps)`; of its `.relu()`
    with the bits of that.

    grad_output: [N, C, ...], floating point; contiguous or channels last, copied otherwise; the
    result is laid out alike.
    weight: [C] or None. running_var: [C]. positive: uint8 [ceil(numel / 8)], one bit an element in
    the order of the result's memory, as `batch_norm_` gives them, or None; where a bit is not set
    grad_output counts as 0. Multiplied in fp32 (fp64 for fp64), twice, and rounded once to the
    dtype of grad_output. Raises ValueError or TypeError that names the argument.
    """
    if plain([t for t in (grad_output, weight, running_var, positive) if t is not None]):
        return _batch_norm_backward(grad_output, weight, running_var, eps, positive)
    return torch.ops.sparse_ft.batch_norm_backward(grad_output, weight, running_var, eps, positive)
