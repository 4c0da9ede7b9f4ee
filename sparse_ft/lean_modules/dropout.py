"""Dropout that keeps one bit an element (torch keeps the noise, in the input's dtype)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .. import ops
from .._torch import direct, is_compiling
from ..double_backward import first_order
from .register import lean_for


@lean_for(nn.Dropout)
def dropout_forward(module: nn.Dropout, input: torch.Tensor) -> torch.Tensor:
    """`nn.Dropout`, on the CPU with the very mask that torch draws from the same seed.

    Kept for backward: numel / 8 bytes; nothing in eval mode and for p = 0, where the input itself
    comes back.
    """
    draws = (
        module.training
        and 0 < module.p < 1
        and input.is_floating_point()
        and input.device.type == "cpu"
    )
    draws = draws and input.layout is torch.strided and not input.is_nested
    if not draws or not (torch.is_grad_enabled() and input.requires_grad) or is_compiling():
        return F.dropout(input, module.p, module.training, module.inplace)
    return _dropout(input, module.p, module.inplace)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, p: float, inplace: bool) -> torch.Tensor:
        noise = torch.empty_like(input).bernoulli_(1 - p)
        ctx.save_for_backward(ops.positive_bits(noise))
        ctx.p = p
        noise.div_(1 - p)
        if not inplace:
            return noise.mul_(input)
        ctx.mark_dirty(input)
        return input.mul_(noise)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        scale = grad_output.new_ones(()).div_(1 - ctx.p).item()  # as torch rounds it
        (bits,) = ctx.saved_tensors
        return ops.where_bits(grad_output, bits, scale), None, None


_dropout = direct(_Dropout)
