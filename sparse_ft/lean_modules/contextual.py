"""APPROXIMATE, off unless asked for: gated MLPs that use a part of their channels in each batch.

A frozen gated MLP, `down(act(gate(x)) * up(x))`, is computed, forward and backward, with those of
its channels alone that matter most for the tokens of the batch (SparseLoRA, Khaki et al., 2025).
Layers of which anything trains stay exact, and so is everything in evaluation.

Which channels matter is looked for on a few tokens of the batch, exactly. SparseLoRA estimates it
from copies of gate and up of rank 8, for all tokens, which on SmolLM2-135M (256 tokens of text,
loss 2.67) finds hardly more than chance: with 75 % of the channels the loss is 2.81 with the best
ones of each layer, 3.29 with those found on every eighth token, 5.15 with those found by rank 8,
5.68 with random ones.

Beside the exact step (one thread of an AMD with AVX-512, 512 tokens): an MLP of SmolLM2's size
takes 0.82, 0.58 and 0.36 of its time with 75, 50 and 25 %. In that model, columns of q_proj and
v_proj training, the first three MLPs and the last exact, the whole step takes 0.97 of its time with
75 %, the gradient's cosine to the exact one being 0.61 (loss 3.17 for 3.05), and 0.81 with 50 %
(0.30; loss 3.78). So on a small model there is little to win; larger ones have more to leave out.
`python -m bench.contextual` measures this (bench/results/contextual.md: 0.94 and 0.82 of the time).
"""

import fnmatch
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .. import ops
from .._torch import is_compiling, is_hooked
from ..annotations import AnyModule
from ..double_backward import first_order
from ..messages import described
from . import gated
from .activations import name_of
from .attach import lean_forward_of
from .linear import linear_forward

# {lean forward of a gated MLP: what its children do}
ROLES: dict[Callable, gated.Roles] = {
    gated.llama_mlp_forward: gated.LLAMA,
    gated.silu_mlp_forward: gated.LLAMA._replace(activation=None),
    gated.numbered_mlp_forward: gated.NUMBERED,
    gated.numbered_silu_mlp_forward: gated.NUMBERED._replace(activation=None),
}


class Contextual(NamedTuple):
    """How `sft.lean(model, contextual=...)` thins the frozen gated MLPs. APPROXIMATE.

    share: of the channels that a batch uses, in (0, 1]. every: of so many tokens one is looked at
    to find them; it costs gate and up of these tokens. but: names or globs of layers that stay
    exact; the first and the last ones are the most sensitive.

    All tokens of a batch use the same channels, also those that have a loss, which SparseLoRA
    computes with all.
    """

    share: float = 0.75
    every: int = 8
    but: tuple[str, ...] = ()


def check_contextual(contextual: Any) -> None:
    """Raise TypeError for what is no `Contextual`, ValueError for numbers that mean nothing."""
    if not isinstance(contextual, Contextual):
        raise TypeError(
            f"contextual: expected sft.Contextual(share, …) or None, got {described(contextual)}"
        )
    share, every = contextual.share, contextual.every
    is_share = isinstance(share, numbers.Real) and not isinstance(share, bool)
    if not is_share or not 0 < share <= 1:
        raise ValueError(f"contextual: expected a share in (0, 1], got {share!r}")
    is_count = isinstance(every, int) and not isinstance(every, bool)
    if not is_count or every < 1:
        raise ValueError(f"contextual: expected every from 1 on, got {every!r}")


class Parts(NamedTuple):
    """The layers of a gated MLP."""

    gate: AnyModule
    up: AnyModule
    down: AnyModule
    activation: str


class ContextualForward:
    """The forward of one gated MLP. exact: the lean forward that it stands in for."""

    def __init__(self, exact: Callable, settings: Contextual) -> None:
        self.exact, self.settings = exact, settings

    def __call__(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        is_training = module.training and torch.is_grad_enabled() and not is_compiling()
        if not is_training or x.numel() == 0 or why_exact(module, self.exact):
            return self.exact(module, x)
        parts = parts_of(module, self.exact)
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        flat = x.reshape(-1, x.size(-1))
        channels = self.channels(flat.detach(), parts)
        return _Thinned.apply(flat, channels, parts).view(*x.shape[:-1], -1)

    @torch.no_grad()
    def channels(self, flat: torch.Tensor, parts: Parts) -> torch.Tensor:
        """Those that add most to the outputs of some of the tokens flat [T, inputs], ascending.

        Each token counts alike, however large it is: a few tokens are a thousand times as large as
        all others, and would choose for all.
        """
        some = flat[:: self.settings.every]
        gate, up = (
            ops.dense_product(some, layer.weight.to(flat.dtype), _cast(layer.bias, flat.dtype))
            for layer in (parts.gate, parts.up)
        )
        product = ops.gated_product(gate, up, parts.activation)
        wide = product.to(torch.promote_types(torch.float32, product.dtype))
        added = wide * parts.down.weight.to(wide.dtype).norm(dim=0)  # [tokens, channels]
        size = F.normalize(added, dim=1).square().sum(0)
        number = max(1, round(self.settings.share * size.numel()))
        return size.topk(number).indices.sort().values


def parts_of(module: AnyModule, exact: Callable) -> Parts:
    """The layers of a gated MLP whose lean forward is `exact`."""
    roles = ROLES[exact]
    gate, up = (module._modules[name] for name in roles.products)
    activation = "silu"
    if roles.activation is not None:
        activation = name_of(module._modules[roles.activation]) or ""
    return Parts(gate, up, module._modules[roles.last], activation)


def why_exact(module: nn.Module, exact: Callable) -> str:
    """Why a gated MLP is not thinned; "" where it is."""
    parts = parts_of(module, exact)
    if not parts.activation:
        return "its activation is not one that is known"
    for layer in parts[:3]:
        if type(layer) is not nn.Linear:
            return f"one of its layers is a {type(layer).__name__}"
        if any(parameter.requires_grad for parameter in layer.parameters(recurse=False)):
            return "one of its layers trains"
        if is_hooked(layer):
            return "one of its layers has hooks"
        if "forward" in layer.__dict__ and lean_forward_of(layer) is not linear_forward:
            return "the forward of one of its layers was replaced by someone else"
    return ""


def contextual_forward(
    name: str, module: nn.Module, forward: Any, settings: Contextual
) -> tuple[Callable, str] | None:
    """(what stands in for a lean forward, why that is exact or ""); None for no gated MLP."""
    exact = forward.exact if isinstance(forward, ContextualForward) else forward
    if exact not in ROLES:
        return None
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in settings.but):
        return exact, "as asked for"
    why = why_exact(module, exact)
    return (exact, why) if why else (ContextualForward(exact, settings), "")


class _Thinned(torch.autograd.Function):
    """A frozen gated MLP with these channels alone. flat: [T, inputs].

    Kept for backward: gate and up of the channels. Their weights are taken out again in backward:
    copies of all layers' would be as large as the model.
    """

    @staticmethod
    def forward(ctx: Any, flat: torch.Tensor, channels: torch.Tensor, parts: Parts) -> torch.Tensor:
        gate = ops.dense_product(flat, *_rows(parts.gate, channels, flat.dtype))
        up = ops.dense_product(flat, *_rows(parts.up, channels, flat.dtype))
        product = ops.gated_product(gate, up, parts.activation)
        bias = _cast(parts.down.bias, flat.dtype)
        weights = [layer.weight for layer in parts[:3]]
        ctx.save_for_backward(gate, up, channels, *weights)
        ctx.activation = parts.activation
        of_down = weights[2].index_select(1, channels).to(flat.dtype)
        return ops.dense_product(product, of_down, bias)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gate, up, channels, *weights = ctx.saved_tensors
        of_gate, of_up = (each.index_select(0, channels).to(gate.dtype) for each in weights[:2])
        of_down = weights[2].index_select(1, channels).to(gate.dtype)
        grad_product = ops.dense_product(grad_output, of_down.T)
        grads = ops.gated_product_backward(grad_product, gate, up, ctx.activation)
        of_flat = ops.dense_product(grads[0], of_gate.T) + ops.dense_product(grads[1], of_up.T)
        return of_flat, None, None


def _cast(bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if bias is None else bias.to(dtype)


def _rows(
    layer: AnyModule, channels: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of these outputs."""
    bias = None if layer.bias is None else layer.bias.index_select(0, channels)
    return layer.weight.index_select(0, channels).to(dtype), _cast(bias, dtype)
