"""batch_norm_backward: the gradient of an input that BatchNorm normalised by its running
statistics, perhaps before a ReLU.
"""

import torch
from torch import Tensor

from . import _native
from ._channels import by_channel, check, in_order, is_channels_last
from ._common import accumulator
from ._registry import op, reference
from ._rows import contiguous
from .positive_bits import check_bits


def _shapes(
    grad_output: Tensor, weight: Tensor | None, running_var: Tensor, positive: Tensor | None
) -> Tensor:
    check("grad_output", grad_output, weight=weight, running_var=running_var)
    if positive is not None:
        check_bits("positive", positive, grad_output)
    if is_channels_last(grad_output):
        return torch.empty_like(grad_output)
    return grad_output.new_empty(grad_output.shape)


def _dense(grad: Tensor) -> Tensor:
    """Contiguous, or channels last if it is that."""
    return grad if is_channels_last(grad) else grad.contiguous()


def _rstd(grad_output: Tensor, running_var: Tensor, eps: float) -> Tensor:
    """1 / sqrt(running_var + eps) as torch has it: on the CPU in fp64, rounded once to the dtype of
    the arithmetic.
    """
    wide = accumulator(grad_output.dtype)
    variance = running_var.to(torch.float64 if running_var.is_cpu else wide)
    return (1 / (variance + eps).sqrt()).to(wide)


def _cpu(
    grad_output: Tensor,
    weight: Tensor | None,
    running_var: Tensor,
    eps: float,
    positive: Tensor | None,
    grad_input: Tensor,
) -> None:
    grad, variance = _dense(grad_output), running_var.contiguous()
    weight, positive = contiguous(weight), contiguous(positive)
    threads = torch.get_num_threads()
    _native.C.batch_norm_backward(grad, variance, weight, eps, positive, grad_input, threads)


@op(
    "batch_norm_backward(Tensor grad_output, Tensor? weight, Tensor running_var, float eps, Tensor?"
    " positive=None) -> Tensor grad_input",
    shapes=_shapes,
    cpu=_cpu,
    triton="batch_norm_backward.batch_norm_backward_triton",
)
def batch_norm_backward(
    grad_output: Tensor,
    weight: Tensor | None,
    running_var: Tensor,
    eps: float,
    positive: Tensor | None = None,
) -> Tensor:
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
    grad = _dense(grad_output)
    if positive is not None:
        axes, ordered = in_order(grad)
        passed = reference("where_bits")(ordered, positive, 1.0)
        grad = passed if axes is None else passed.permute(axes[1])
    grad_input = grad * by_channel(_rstd(grad, running_var, eps), grad)
    if weight is not None:
        grad_input = grad_input * by_channel(weight, grad)
    return grad_input.to(grad.dtype)
