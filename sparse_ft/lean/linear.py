"""Frozen linear layers under autocast: torch keeps a 16-bit copy of every weight for backward; these keep the weight itself."""

import torch
import torch.nn.functional as F
from torch import nn

from ..double_backward import first_order
from ..rebuild import unviewed
from .attach import direct


class _FrozenLinear(torch.autograd.Function):
    """Keeps a reference to the weight, and casts it again in backward."""

    @staticmethod
    def forward(ctx, input, weight, bias):
        ctx.save_for_backward(weight)
        return unviewed(F.linear(input, weight, bias))

    @staticmethod
    @first_order
    def backward(ctx, grad_output):
        (weight,) = ctx.saved_tensors
        grad_input = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_input = grad_output @ weight.to(grad_output.dtype)  # autograd casts it to the input's dtype
        if ctx.needs_input_grad[2]:
            grad_bias = grad_output.reshape(-1, grad_output.size(-1)).sum(0)
        return grad_input, None, grad_bias


_frozen_linear = direct(_FrozenLinear)


def linear_forward(module, input):
    """`nn.Linear`. Kept for backward where the weight is frozen: nothing but a reference to the weight, also under autocast."""
    if type(module) is not nn.Linear:  # converted since
        return type(module).forward(module, input)
    weight, bias = module.weight, module.bias
    if weight.requires_grad or not torch.is_autocast_enabled(input.device.type) or not torch.is_grad_enabled():
        return F.linear(input, weight, bias)
    return _frozen_linear(input, weight, bias)
