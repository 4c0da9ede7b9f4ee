"""Layers of convnets, convolution -> BatchNorm -> activation.

BatchNorm and a ReLU work in place on the convolution's output.

Kept for backward: one bit an element where there is a ReLU, and weight and running variance by
reference.
"""

from typing import Any

import torch
from torch import nn

from .. import ops
from .._torch import (
    direct,
    forward_hooks,
    is_compiling,
    is_hooked,
    is_hooked_in_backward,
    is_view,
    is_watched,
)
from ..annotations import AnyModule
from ..double_backward import first_order
from ..ops._channels import CHANNELS_LAST, in_order
from .activations import relu_forward
from .attach import lean_forward_of
from .batch_norm import batch_norm_forward
from .probe import Case, Cases, Child, Undecided, Wave, pattern, stand_in
from .register import lean_if

CONVOLUTIONS = nn.Conv2d, nn.ConvTranspose2d


def layer_cases(*names: str) -> Cases:
    """For modules with such children, called one after another."""

    def cases(module: nn.Module) -> list[Case] | None:
        if any(module._modules.get(name) is None for name in names):
            return None
        own = [*dict.keys(module._parameters), *module._buffers]
        if own:
            raise Undecided(f"it has {', '.join(own)} besides its layers")
        return [
            Case(_waves(module, training), pattern(2, 3, 4, 5, dtype=dtype), dtype == torch.float32)
            for dtype in (torch.float32, torch.bfloat16)
            for training in (True, False)
        ]

    return cases


def _waves(module: nn.Module, training: bool) -> nn.Module:
    parts = [name for name, child in module._modules.items() if child is not None]
    children = {name: Child(Wave(2.0 + number)) for number, name in enumerate(parts)}
    return stand_in(module, children=children, training=training)


@lean_if(layer_cases("convolution", "normalization", "activation"))
def conv_layer_forward(module: AnyModule, x: torch.Tensor) -> torch.Tensor:
    """ResNet, RegNet, RT-DETR's ResNet, ..."""
    return _layer(x, module.convolution, module.normalization, module.activation)


@lean_if(layer_cases("convolution", "normalization"))
def shortcut_forward(module: AnyModule, x: torch.Tensor) -> torch.Tensor:
    """ResNet, RegNet, RT-DETR's ResNet."""
    return _layer(x, module.convolution, module.normalization)


@lean_if(layer_cases("conv", "norm", "activation"))
def conv_norm_forward(module: AnyModule, x: torch.Tensor) -> torch.Tensor:
    """RT-DETR, D-FINE, LW-DETR, ..."""
    return _layer(x, module.conv, module.norm, module.activation)


def _layer(
    x: torch.Tensor,
    convolution: nn.Module,
    normalization: nn.Module,
    activation: nn.Module | None = None,
) -> torch.Tensor:
    x = convolution(x)
    if not (
        isinstance(x, torch.Tensor)
        and _is_fixed(normalization, x.dtype)
        and _is_ours(x, convolution)
    ):
        x = normalization(x)
        return x if activation is None else activation(x)
    relu = (
        type(activation) is nn.ReLU
        and lean_forward_of(activation) is relu_forward
        and not is_hooked(activation)
    )
    n = normalization
    x = _batch_norm_(x, n.running_mean, n.running_var, n.weight, n.bias, n.eps, relu)
    return x if relu or activation is None else activation(x)


def _is_fixed(n: AnyModule, dtype: torch.dtype) -> bool:
    """Whether this is a lean BatchNorm2d by statistics and parameters that do not change, of dtypes
    that torch takes.
    """
    if (
        type(n) is not nn.BatchNorm2d
        or n.training
        or lean_forward_of(n) is not batch_norm_forward
        or is_hooked(n)
    ):
        return False
    mean, var, weight, bias = n.running_mean, n.running_var, n.weight, n.bias
    if (
        mean is None
        or var is None
        or any(p is not None and p.requires_grad for p in (weight, bias))
    ):
        return False
    found = {t.dtype for t in (mean, var, weight, bias) if t is not None}
    return found == {dtype} or (found == {torch.float32} and dtype.itemsize == 2)


def _is_ours(x: torch.Tensor, convolution: nn.Module) -> bool:
    """Whether `x`, the output of a convolution that backward will reach, is held by nobody else and
    may be written over.
    """
    if (
        not (torch.is_grad_enabled() and x.requires_grad and x.dim() == 4)
        or is_compiling()
        or is_watched()
    ):
        return False
    if type(convolution) not in CONVOLUTIONS or is_hooked_in_backward(convolution):
        return False
    # It may keep what it returns.
    if "forward" in convolution.__dict__ and lean_forward_of(convolution) is None:
        return False
    if not all(getattr(hook, "holds_nothing", False) for hook in forward_hooks(convolution)):
        return False
    return not x.is_leaf and not is_view(x) and in_order(x)[1].is_contiguous()


class _BatchNorm(torch.autograd.Function):
    """In place; differentiable in its input, once."""

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        mean: torch.Tensor,
        var: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
        relu: bool,
    ) -> torch.Tensor:
        ctx.mark_dirty(input)
        bits = ops.batch_norm_(input, mean, var, weight, bias, eps, relu)
        ctx.save_for_backward(weight, var, bits if relu else None)
        ctx.eps = eps
        ctx.format = torch.contiguous_format if input.is_contiguous() else CHANNELS_LAST[4]
        return input

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, var, bits = ctx.saved_tensors
        if bits is not None:
            # The order that the bits are in.
            grad_output = grad_output.contiguous(memory_format=ctx.format)
        grad_input = ops.batch_norm_backward(grad_output, weight, var, ctx.eps, bits)
        return grad_input, *[None] * 6


_batch_norm_ = direct(_BatchNorm)
