"""StandIn: what takes the place of a quantised layer in a dry run (`sft.estimate`), where its
library's own tensors cannot go without data: the same bytes, and products of the same sizes.
"""

from typing import Any

import torch
from torch import nn

from ..annotations import AnyModule
from ..products import flattened
from .quantiser import Quantiser


class StandIn(nn.Linear):
    """As large as `layer`, and of no numbers of its own. dtype: what `layer` was quantised from."""

    def __init__(self, layer: AnyModule, quantiser: type[Quantiser]) -> None:
        nn.Module.__init__(self)
        self.in_features = layer.in_features
        self.out_features = layer.out_features
        self.wide = quantiser.dtype(layer)
        codes, *others = quantiser.tensors(layer)
        self.weight = nn.Parameter(codes.detach(), requires_grad=False)
        self.register_parameter("bias", layer.bias)
        for number, tensor in enumerate(others):
            self.register_buffer(f"part_{number}", tensor.detach())

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _Frozen.apply(input, self.bias, self)


class OfStandIn(Quantiser):
    """Numbers of no meaning."""

    name = "stand-in"
    REPLACES = (StandIn,)

    @staticmethod
    def dtype(layer: AnyModule) -> torch.dtype:
        return layer.wide

    @staticmethod
    def dequantise(layer: AnyModule, dtype: torch.dtype) -> torch.Tensor:
        shape = layer.out_features, layer.in_features
        return torch.empty(shape, dtype=dtype, device=layer.weight.device)


class _Frozen(torch.autograd.Function):
    """The product of a quantised layer without selected entries, which keeps its codes alone."""

    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, bias: torch.Tensor | None, layer: StandIn
    ) -> torch.Tensor:
        ctx.layer = layer
        dense = OfStandIn.dequantise(layer, input.dtype)
        return nn.functional.linear(input, dense, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_input = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_input = grad_output @ OfStandIn.dequantise(ctx.layer, grad_output.dtype)
        if ctx.needs_input_grad[1]:
            grad_bias = flattened(grad_output).sum(0)
        return grad_input, grad_bias, None
