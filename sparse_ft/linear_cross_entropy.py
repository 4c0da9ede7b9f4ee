"""The loss of a language model straight from its hidden states.

Logits exist for a few tokens at a time and are never kept.
"""

from collections.abc import Sequence
from typing import Any

import torch

from . import ops
from ._torch import is_compiling
from .double_backward import first_order
from .selection import Selection

CHUNK_BYTES = 32 << 20  # of fp32 logits at a time


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    divisor: float | torch.Tensor | None = None,
    values: torch.Tensor | None = None,
    selection: Selection | None = None,
) -> torch.Tensor:
    """`F.cross_entropy(F.linear(hidden, weight, bias).float(), target)` without its logits.

    hidden: [..., H]. weight: [V, H]. target: integers [...]; tokens whose target is ignore_index
    cost nothing. bias: [V].
    reduction: "mean" or "sum"; divisor: what to divide the sum by instead (gradient accumulation).
    values, selection: the entries of a frozen weight that train, as in `selective_linear`. Returns
    a scalar, fp32 (fp64 for fp64). Where no token has a target, the mean is NaN and all gradients
    are zero, as in torch.

    Kept for backward: one gradient the size of the hidden states that have a target, and the
    gradients of what trains of the head; both are computed in the forward, as the loss is a scalar.
    Raises ValueError and TypeError that name the argument; double backward raises RuntimeError.
    Source: Wijmans et al., 2024 (Cut Your Losses); Hsu et al., 2024 (Liger).
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}")
    if target.shape != hidden.shape[:-1]:
        raise ValueError(
            f"target: expected shape {tuple(hidden.shape[:-1])} as hidden without its last, got"
            f" {tuple(target.shape)}"
        )
    if target.is_floating_point():
        raise TypeError(f"target: expected integers, got {target.dtype}")
    if weight.dim() != 2 or weight.size(1) != hidden.size(-1):
        raise ValueError(
            f"weight: expected shape [V, {hidden.size(-1)}], got {tuple(weight.shape)}"
        )
    if (values is None) != (selection is None):
        raise ValueError("values: give values and selection together")
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    flat, target = hidden.reshape(-1, hidden.size(-1)), target.reshape(-1)
    chosen = (target != ignore_index).nonzero().squeeze(1)  # [n]
    if chosen.size(0) < target.size(0):
        flat, target = flat.index_select(0, chosen), target.index_select(0, chosen)
    if target.device.type == "cpu" and target.numel() and not is_compiling():
        low, high = map(int, target.aminmax())
        if low < 0 or high >= weight.size(0):
            raise ValueError(
                f"target: expected classes in [0, {weight.size(0)}) or {ignore_index}, got {low} to"
                f" {high}"
            )
    if divisor is None:
        divisor = target.numel() if reduction == "mean" else 1
    layout = None if selection is None else selection.to(weight.device).layout
    total = _LinearCrossEntropy.apply(flat, weight, bias, values, target, layout)
    return total / divisor


class _LinearCrossEntropy(torch.autograd.Function):
    """The sum of the losses. hidden: [n, H]; target: [n]."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        values: torch.Tensor | None,
        target: torch.Tensor,
        layout: Any,
    ) -> torch.Tensor:
        needs = ctx.needs_input_grad[:4]
        wide = torch.promote_types(torch.float32, hidden.dtype)
        total = hidden.new_zeros((), dtype=wide)
        grads = _Gradients(hidden, weight, bias, values, layout, needs)
        step = max(16, CHUNK_BYTES // (4 * weight.size(0)))
        for begin in range(0, hidden.size(0), step):
            part, classes = hidden[begin : begin + step], target[begin : begin + step, None]
            added = None if bias is None else bias.to(part.dtype)
            logits = ops.dense_product(part, weight.to(part.dtype), added).to(wide)  # [c, V]
            norm = logits.logsumexp(1, keepdim=True)
            total += (norm - logits.gather(1, classes)).sum()
            if any(needs):
                logits.sub_(norm).exp_()  # softmax, in place: the logits are of no more use
                logits.scatter_add_(1, classes, torch.full_like(classes, -1, dtype=wide))
                grads.add(begin, part, logits)
        ctx.save_for_backward(*grads.all())
        ctx.counts = hidden.size(0) > 0  # whether any token does
        return total

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # The mean over no token is NaN, its gradient in torch is zero, and NaN times zero would be
        # neither.
        scale = grad_output if ctx.counts else 1
        return *(None if grad is None else grad * scale for grad in ctx.saved_tensors), None, None


def _wide_zeros(like: torch.Tensor | None, needed: bool) -> torch.Tensor | None:
    if like is None or not needed:
        return None
    return torch.zeros_like(like, dtype=torch.promote_types(torch.float32, like.dtype))


class _Gradients:
    """Of the sum of losses, for whichever of hidden, weight, bias and values need one.

    Filled chunk by chunk.
    """

    def __init__(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        values: torch.Tensor | None,
        layout: Any,
        needs: Sequence[bool],
    ) -> None:
        self.weight, self.layout = weight, layout
        self.of_hidden = torch.empty_like(hidden) if needs[0] else None
        _, needs_weight, needs_bias, needs_values = needs
        self.of_weight = _wide_zeros(weight, needs_weight)
        self.of_bias = _wide_zeros(bias, needs_bias)
        self.of_values = _wide_zeros(values, needs_values)
        self.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias, values)]

    def add(self, begin: int, part: torch.Tensor, grad_logits: torch.Tensor) -> None:
        """part: [c, H]; grad_logits: [c, V], wide."""
        if self.of_bias is not None:
            self.of_bias += grad_logits.sum(0)
        grad_logits = grad_logits.to(part.dtype)
        if self.of_hidden is not None:
            weight, place = self.weight.to(part.dtype), self.of_hidden[begin : begin + part.size(0)]
            if ops.serves_dense(grad_logits, weight.T):
                place.copy_(ops.dense_product(grad_logits, weight.T))
            else:
                torch.mm(grad_logits, weight, out=place)
        if self.of_weight is not None:
            self.of_weight += grad_logits.T @ part
        if self.of_values is not None:
            ops.selected_wgrad_(self.of_values, grad_logits, part, self.layout)

    def all(self) -> list[torch.Tensor | None]:
        grads = (self.of_hidden, self.of_weight, self.of_bias, self.of_values)
        return [None if g is None else g.to(dtype) for g, dtype in zip(grads, self.dtypes)]
