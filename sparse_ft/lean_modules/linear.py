"""Linear layers of a lean model.

Their dense products by whoever is fastest, nothing kept but what backward needs.

Under autocast torch keeps a 16-bit copy of every frozen weight for backward; these keep the weight
itself.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .. import ops
from .._torch import direct, is_compiling
from ..annotations import AnyModule
from ..double_backward import first_order
from ..functional import lean_product
from ..nn import SelectiveConv1D, SelectiveLinear
from ..nn.showing import is_shown
from ..rebuild import unviewed
from .register import lean_for


class _FrozenLinear(torch.autograd.Function):
    """Keeps a reference to the weight, and casts it again in backward. weight: [out, in], stored
    either way.
    """

    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return unviewed(ops.dense_product(input, weight, bias))

    @staticmethod
    @first_order
    def backward(
        ctx: Any, grad_output: torch.Tensor
    ) -> tuple[torch.Tensor | None, None, torch.Tensor | None]:
        (weight,) = ctx.saved_tensors
        grad_input = grad_bias = None
        flat = grad_output.reshape(-1, grad_output.size(-1))
        if ctx.needs_input_grad[0]:
            by = weight.to(grad_output.dtype)
            grad_input = ops.dense_product(flat, by.T)  # autograd casts it to the input's dtype
            grad_input = grad_input.view(*grad_output.shape[:-1], weight.size(1))
        if ctx.needs_input_grad[2]:
            grad_bias = flat.sum(0)
        return grad_input, None, grad_bias


_frozen_linear = direct(_FrozenLinear)


@lean_for(nn.Linear, SelectiveLinear)
def linear_forward(module: nn.Linear, input: torch.Tensor) -> torch.Tensor:
    """`nn.Linear`.

    Kept for backward where the weight is frozen: nothing but a reference to the weight, also under
    autocast.
    """
    if isinstance(module, SelectiveLinear):  # converted since
        return selective_forward(module, input)
    if type(module) is not nn.Linear:
        return type(module).forward(module, input)
    weight, bias = module.weight, module.bias
    if weight.requires_grad:
        return F.linear(input, weight, bias)
    if not torch.is_grad_enabled():
        return ops.dense_product(input, weight, bias)
    if torch.is_autocast_enabled(input.device.type) or ops.serves_dense(input, weight, bias):
        return _frozen_linear(input, weight, bias)
    return F.linear(input, weight, bias)


@lean_for(SelectiveConv1D)
def conv1d_forward(module: AnyModule, x: torch.Tensor) -> torch.Tensor:
    """transformers' `Conv1D`, a linear layer whose weight is stored [in, out]."""
    if isinstance(module, SelectiveConv1D):  # converted since
        return selective_forward(module, x)
    weight, bias = module.weight, module.bias
    if weight.requires_grad or not ops.serves_dense(x, weight.T, bias):
        return type(module).forward(module, x)
    if torch.is_grad_enabled():
        return _frozen_linear(x, weight.T, bias)
    return ops.dense_product(x, weight.T, bias)


def selective_forward(module: AnyModule, input: torch.Tensor) -> torch.Tensor:
    """`SelectiveLinear` and `SelectiveConv1D`."""
    parameters, state = module._parameters, module._sparse_ft_state
    weight, values = parameters["weight"], parameters["values"]
    if is_compiling() or not is_shown(state, values, weight):
        module.sync_to_run()
    return lean_product(input, weight, values, module.bias, state.part, module._input_dim)
