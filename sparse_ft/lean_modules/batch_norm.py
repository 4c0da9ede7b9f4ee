"""BatchNorm by its running statistics: a fixed scale and shift a channel.

Kept for backward: weight and running variance, by reference; torch keeps the input too.
"""

from typing import Any

import torch
from torch import nn

from .. import ops
from .._torch import direct
from ..annotations import AnyModule
from ..double_backward import first_order
from .register import lean_for

DIMENSIONS = {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,)}


@lean_for(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def batch_norm_forward(module: AnyModule, input: torch.Tensor) -> torch.Tensor:
    """`nn.BatchNorm1d`, `nn.BatchNorm2d`, `nn.BatchNorm3d` in eval mode with a frozen weight.

    Torch's own otherwise.
    """
    mean, var = module.running_mean, module.running_var
    weight, bias = module.weight, module.bias
    fixed = not module.training and mean is not None and var is not None
    fits = input.dim() in DIMENSIONS.get(type(module), ())  # otherwise torch says what is wrong
    if (
        not (fixed and fits)
        or not torch.is_grad_enabled()
        or (weight is not None and weight.requires_grad)
    ):
        return type(module).forward(module, input)
    return _batch_norm(input, weight, bias, mean, var, module.eps)


class _BatchNorm(torch.autograd.Function):
    """Differentiable in input and bias, once."""

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        mean: torch.Tensor,
        var: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(*((weight, var) if ctx.needs_input_grad[0] else (None, None)))
        ctx.eps = eps
        ctx.bias_dtype = None if bias is None else bias.dtype
        return torch.nn.functional.batch_norm(input, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, var = ctx.saved_tensors
        grad_input = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_input = ops.batch_norm_backward(grad_output, weight, var, ctx.eps)
        if ctx.needs_input_grad[2]:
            others = [d for d in range(grad_output.dim()) if d != 1]
            grad_bias = grad_output.sum(others).to(ctx.bias_dtype)
        return grad_input, None, grad_bias, None, None, None


_batch_norm = direct(_BatchNorm)
