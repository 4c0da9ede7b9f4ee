"""Gated products, act(gate) * up (SwiGLU, GeGLU; Shazeer, 2020): gate and up are kept, activation
and product are not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import ops
from .._torch import direct, is_hooked
from ..annotations import AnyModule
from ..double_backward import first_order
from ..ops._activations import ACTIVATIONS
from ..rebuild import remember, select
from .activations import name_of
from .attach import attach, lean_forward_of
from .probe import Case, Cases, Child, Undecided, Wave, linear, pattern, stand_in
from .register import lean_if


def gated_product(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """act(gate) * up in fp32, rounded once. gate, up: [..., F]. activation: "silu", "gelu",
    "gelu_tanh" or "relu".

    Kept for backward: gate and up, 2 F elements a token (torch keeps 3 F); all that torch does,
    where their dtypes differ. Differentiable in both, once.
    """
    if gate.dtype != up.dtype:
        return ACTIVATIONS[activation][0](gate) * up
    if not torch.is_grad_enabled():
        return ops.gated_product(gate, up, activation)
    output = _gated_product(gate, up, activation)
    remember(output, _remake(activation), (gate, up))
    return output


def _remake(activation: str) -> Callable[..., torch.Tensor]:
    def make(
        gate: torch.Tensor, up: torch.Tensor, features: torch.Tensor | None = None
    ) -> torch.Tensor:
        return ops.gated_product(select(gate, features), select(up, features), activation)

    return make


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return ops.gated_product(gate, up, activation)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        gate, up = ctx.saved_tensors
        return *ops.gated_product_backward(grad_output, gate, up, ctx.activation), None


_gated_product = direct(_GatedProduct)


class Roles(NamedTuple):
    """The children of a gated MLP by what they do.

    products: gate and up, or one that gives both. activation: None where its forward calls F.silu.
    """

    products: tuple[str, ...]
    last: str | None
    activation: str | None


HIDDEN, FEATURES = 4, 6  # of a stand-in
SIZES = 0.0, 0.1, 1.0, 3.0  # of tokens
DTYPES = (  # of the products, of the last one, and of the input
    (torch.float32, torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32, torch.bfloat16),
    (torch.float16, torch.float16, torch.float16),
)


def why_not_gated(module: nn.Module, roles: Roles) -> str | None:
    """Why a module with these children cannot be tried.

    "" where it can, None where it has other children.
    """
    names = [*roles.products, roles.last, roles.activation]
    if any(module._modules.get(name) is None for name in names if name is not None):
        return None
    own = [*dict.keys(module._parameters), *module._buffers] if roles.last is not None else []
    return f"it has {', '.join(own)} besides its layers" if own else ""


def gated_cases(roles: Roles) -> Cases:
    """For modules with such children.

    Small products in a few dtypes around the activation, in training and not.
    """

    def cases(module: nn.Module) -> list[Case] | None:
        why = why_not_gated(module, roles)
        if why is None:
            return None
        if why:
            raise Undecided(why)
        return [
            Case(
                _small(module, roles, products, last, training), input, input.dtype == torch.float32
            )
            for products, last, input in [
                (*dtypes[:2], _input(roles, dtypes[2])) for dtypes in DTYPES
            ]
            for training in (True, False)
        ]

    return cases


def _input(roles: Roles, dtype: torch.dtype) -> torch.Tensor:
    """Tokens of many sizes, zero among them, where a bias of whatever size would show."""
    sizes = torch.tensor(SIZES, device="cpu").view(-1, 1)
    if roles.last is None:
        return (pattern(len(SIZES), 2 * FEATURES) * sizes).to(dtype)
    return (pattern(2, len(SIZES), HIDDEN) * sizes).to(dtype)


def _small(
    module: nn.Module, roles: Roles, products: torch.dtype, last: torch.dtype, training: bool
) -> nn.Module:
    children = {
        name: Child(Wave(0.5)) for name, child in module._modules.items() if child is not None
    }
    features = 2 * FEATURES if len(roles.products) == 1 else FEATURES
    for number, name in enumerate(roles.products):
        children[name] = linear(HIDDEN, features, products, first=number)
    if roles.last is not None:
        children[roles.last] = linear(FEATURES, HIDDEN, last, first=2)
    if roles.activation is None:
        return stand_in(module, children=children, training=training)
    activation: AnyModule = module._modules[roles.activation]
    if is_hooked(activation):
        raise Undecided("its activation has hooks, which would not run")
    if name_of(activation) is None:
        raise Undecided(f"its activation {type(activation).__name__} is not one that is known")
    twin = stand_in(activation, training=training)
    forward: Any = lean_forward_of(activation)
    attach(twin, "forward", forward)
    children[roles.activation] = Child(twin)
    return stand_in(module, children=children, training=training)


LLAMA = Roles(("gate_proj", "up_proj"), "down_proj", "act_fn")
NUMBERED = Roles(("w1", "w3"), "w2", "act_fn")


@lean_if(gated_cases(LLAMA))
def llama_mlp_forward(module: AnyModule, x: torch.Tensor) -> torch.Tensor:
    """down(act(gate(x)) * up(x)): Llama, Mistral, Qwen, Gemma and most others."""
    name = name_of(module.act_fn)
    if name is None:  # it was put there since, or hooks were
        return type(module).forward(module, x)
    return module.down_proj(gated_product(module.gate_proj(x), module.up_proj(x), name))


@lean_if(gated_cases(LLAMA._replace(activation=None)))
def silu_mlp_forward(module: AnyModule, x: torch.Tensor) -> torch.Tensor:
    """Llama's with `F.silu` in its forward."""
    return module.down_proj(gated_product(module.gate_proj(x), module.up_proj(x), "silu"))


@lean_if(gated_cases(NUMBERED))
def numbered_mlp_forward(module: AnyModule, x: torch.Tensor) -> torch.Tensor:
    """Llama's with other names: Mixtral's experts before transformers 5."""
    name = name_of(module.act_fn)
    if name is None:
        return type(module).forward(module, x)
    return module.w2(gated_product(module.w1(x), module.w3(x), name))


@lean_if(gated_cases(NUMBERED._replace(activation=None)))
def numbered_silu_mlp_forward(module: AnyModule, x: torch.Tensor) -> torch.Tensor:
    """Llama's as Meta wrote it: `w2(F.silu(w1(x)) * w3(x))`."""
    return module.w2(gated_product(module.w1(x), module.w3(x), "silu"))


@lean_if(gated_cases(Roles(("gate_up_proj",), "down_proj", "activation_fn")))
def phi3_mlp_forward(module: AnyModule, hidden_states: torch.Tensor) -> torch.Tensor:
    """As above, with gate and up from one projection."""
    name = name_of(module.activation_fn)
    if name is None:
        return type(module).forward(module, hidden_states)
    gate, up = module.gate_up_proj(hidden_states).chunk(2, dim=-1)
    return module.down_proj(gated_product(gate, up, name))


@lean_if(gated_cases(Roles(("wi_0", "wi_1"), "wo", "act")))
def t5_gated_forward(module: AnyModule, hidden_states: torch.Tensor) -> torch.Tensor:
    """T5's gated feed-forward; wo may be kept in fp32."""
    name = name_of(module.act)
    if name is None:
        return type(module).forward(module, hidden_states)
    product = gated_product(module.wi_0(hidden_states), module.wi_1(hidden_states), name)
    product = module.dropout(product)
    weight = module.wo.weight
    if isinstance(weight, torch.Tensor) and product.dtype != weight.dtype:
        if weight.dtype != torch.int8:
            product = product.to(weight.dtype)
    return module.wo(product)


@lean_if(gated_cases(Roles((), None, "act_fn")), attribute="_apply_gate")
def experts_gate(module: AnyModule, gate_up: torch.Tensor) -> torch.Tensor:
    """The gate of transformers' grouped experts (Mixtral, Qwen MoE).

    Gate and up from one product, [S, 2 F].
    """
    name = name_of(module.act_fn)
    if name is None:
        return type(module)._apply_gate(module, gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return gated_product(gate, up, name)
