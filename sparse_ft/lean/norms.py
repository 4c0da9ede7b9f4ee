"""Norms that keep their input as it came (no fp32 copy, no normalised copy) and one number a token.

Kept for backward, per token of F features: the input, F elements in its own dtype, shared with whoever holds it (the residual
stream); 4 bytes. transformers' RMSNorm as it is written keeps about 5 F elements.
"""

import torch
import torch.nn.functional as F

from .. import ops
from ..double_backward import first_order
from ..rebuild import cast, remember, select
from .attach import direct


def rms_norm(input, weight, eps, offset, dtype=None):
    """input * rsqrt(mean(input², -1) + eps) * (offset + weight), in fp32 and rounded once (Zhang & Sennrich, 2019).

    input: [..., F]. weight: [F] or None. dtype: of the result (None: what input and weight promote to). Returns [..., F].
    Differentiable in input and weight, once. offset has no default: torch.compile, asked for dynamic shapes, takes a default float
    for an input of the graph that the first norm has to itself, and fails at the second.
    """
    if not torch.is_grad_enabled():
        return ops.rms_norm(input, weight, eps, offset, dtype=dtype)[0]
    output, rstd = _rms_norm(input, weight, eps, offset, dtype)
    remember(output, _remake(offset, output.dtype), (input,), (rstd, weight))
    return output


def _remake(offset, dtype):
    def make(input, rstd, weight, features=None):
        normed = select(input, features).to(rstd.dtype) * rstd.unsqueeze(-1)
        return (normed if weight is None else normed * _scale(weight, offset, features, rstd.dtype)).to(dtype)

    return make


def _scale(weight, offset, features, dtype):
    weight = select(weight, features).to(dtype)
    return weight + offset if offset else weight


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, weight, eps, offset, dtype):
        output, rstd = ops.rms_norm(input, weight, eps, offset, dtype=dtype)
        ctx.save_for_backward(input, rstd, weight)
        ctx.mark_non_differentiable(rstd)
        ctx.offset = offset
        return output, rstd

    @staticmethod
    @first_order
    def backward(ctx, grad_output, _):
        input, rstd, weight = ctx.saved_tensors
        grad_input = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_input = ops.rms_norm_backward(grad_output, input, rstd, weight, ctx.offset)
        if ctx.needs_input_grad[1]:
            product = grad_output.to(rstd.dtype) * (input.to(rstd.dtype) * rstd.unsqueeze(-1))
            grad_weight = product.reshape(-1, input.size(-1)).sum(0).to(weight.dtype)
        return grad_input, grad_weight, None, None, None


_rms_norm = direct(_RMSNorm)


def layer_norm(input, shape, weight, bias, eps):
    """`F.layer_norm(input, shape, weight, bias, eps)`, bit for bit, that can make its output again for whoever reads it.

    Kept for backward: as in torch, the input and two numbers a token.
    """
    if not input.requires_grad or torch.is_autocast_enabled(input.device.type) or torch.compiler.is_compiling():
        return F.layer_norm(input, shape, weight, bias, eps)
    output, mean, rstd = torch.native_layer_norm(input, shape, weight, bias, eps)
    if len(shape) == 1:
        remember(output, _remake_layer_norm(shape, eps, output.dtype), (input,), (mean.detach(), rstd.detach(), weight, bias))
    return output


def _remake_layer_norm(shape, eps, dtype):
    def make(input, mean, rstd, weight, bias, features=None):
        wide = torch.float64 if input.dtype == torch.float64 else torch.float32
        if features is None or mean.dtype != wide:  # torch rounds mean and rstd of 16-bit tensors after their use
            return cast(select(F.layer_norm(input, shape, weight, bias, eps), features), dtype)
        output = cast(select(input, features), wide).sub_(mean).mul_(rstd)
        if weight is not None:
            output.mul_(cast(weight.index_select(0, features), wide))
        if bias is not None:
            output.add_(cast(bias.index_select(0, features), wide))
        return cast(output, dtype)

    return make


def llama_forward(module, hidden_states):
    """RMSNorm of Llama, Mistral, Qwen and most others: the weight multiplies in the input's dtype."""
    return rms_norm(hidden_states, module.weight, module.variance_epsilon, 0.0)


def olmo_forward(module, hidden_states):
    """Olmo's: the weight multiplies in fp32."""
    return rms_norm(hidden_states, module.weight, module.variance_epsilon, 0.0, dtype=hidden_states.dtype)


def t5_forward(module, hidden_states):
    """T5's: a 16-bit weight sets the dtype of the result."""
    half = module.weight.dtype in (torch.float16, torch.bfloat16)
    return rms_norm(hidden_states, module.weight, module.variance_epsilon, 0.0, dtype=module.weight.dtype if half else None)


def gemma_forward(module, x):
    """Gemma's: the weight is stored as its distance from one."""
    return rms_norm(x, module.weight, module.eps, 1.0, dtype=x.dtype)


def torch_rms_norm_forward(module, x):
    """`nn.RMSNorm` over the last dimension."""
    eps = torch.finfo(torch.promote_types(torch.float32, x.dtype)).eps if module.eps is None else module.eps
    return rms_norm(x, module.weight, eps, 0.0, dtype=x.dtype)


def layer_norm_forward(module, input):
    return layer_norm(input, module.normalized_shape, module.weight, module.bias, module.eps)
