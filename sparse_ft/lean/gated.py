"""Gated products, act(gate) * up (SwiGLU, GeGLU; Shazeer, 2020): gate and up are kept, activation and product are not."""

import torch

from .. import ops
from ..double_backward import first_order
from ..ops._activations import ACTIVATIONS
from ..rebuild import remember, select
from .attach import direct


def gated_product(gate, up, activation):
    """act(gate) * up in fp32, rounded once. gate, up: [..., F]. activation: "silu", "gelu", "gelu_tanh" or "relu".

    Kept for backward: gate and up, 2 F elements a token (torch keeps 3 F); all that torch does, where their dtypes differ.
    Differentiable in both, once.
    """
    if gate.dtype != up.dtype:
        return ACTIVATIONS[activation][0](gate) * up
    if not torch.is_grad_enabled():
        return ops.gated_product(gate, up, activation)
    output = _gated_product(gate, up, activation)
    remember(output, _remake(activation), (gate, up))
    return output


def _remake(activation):
    def make(gate, up, features=None):
        return ops.gated_product(select(gate, features), select(up, features), activation)

    return make


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up, activation):
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return ops.gated_product(gate, up, activation)

    @staticmethod
    @first_order
    def backward(ctx, grad_output):
        return *ops.gated_product_backward(grad_output, *ctx.saved_tensors, ctx.activation), None


_gated_product = direct(_GatedProduct)


def name_of(activation):
    """The name under which the op knows an activation module, or None."""
    kind = type(activation).__name__
    if kind == "GELU":
        return "gelu" if activation.approximate == "none" else "gelu_tanh"
    if kind == "GELUActivation":
        return "gelu" if not getattr(activation, "use_gelu_python", False) else None
    known = {"SiLU": "silu", "SiLUActivation": "silu", "ReLU": "relu"}
    tanh = ("NewGELUActivation", "PytorchGELUTanh", "GELUTanh", "FastGELUActivation")
    return "gelu_tanh" if kind in tanh else known.get(kind)


def llama_mlp_forward(module, x):
    """down(act(gate(x)) * up(x)): Llama, Mistral, Qwen, Gemma and most others."""
    return module.down_proj(gated_product(module.gate_proj(x), module.up_proj(x), name_of(module.act_fn)))


def phi3_mlp_forward(module, hidden_states):
    """As above, with gate and up from one projection."""
    gate, up = module.gate_up_proj(hidden_states).chunk(2, dim=-1)
    return module.down_proj(gated_product(gate, up, name_of(module.activation_fn)))


def t5_gated_forward(module, hidden_states):
    """T5's gated feed-forward; wo may be kept in fp32."""
    product = gated_product(module.wi_0(hidden_states), module.wi_1(hidden_states), name_of(module.act))
    product = module.dropout(product)
    weight = module.wo.weight
    if isinstance(weight, torch.Tensor) and product.dtype != weight.dtype and weight.dtype != torch.int8:
        product = product.to(weight.dtype)
    return module.wo(product)


def experts_gate(module, gate_up):
    """The gate of transformers' grouped experts (Mixtral, Qwen MoE): gate and up from one grouped product, [S, 2 F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return gated_product(gate, up, name_of(module.act_fn))
