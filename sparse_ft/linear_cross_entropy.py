"""The loss of a language model straight from its hidden states.

Logits exist for a few tokens at a time and are never kept.
"""

from typing import Any, NamedTuple

import torch

from ._torch import FakeTensor, is_compiling
from .double_backward import first_order
from .selection import Selection
from .token_losses import CrossEntropy, TokenWeights, each_token
from .token_losses import chunks as room
from .token_losses.chunks import HeadGradients, wide_dtype
from .token_losses.tokens import check_weights, weigh


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
    token_weights: TokenWeights | None = None,
    return_entropy: bool = False,
) -> Any:
    """`F.cross_entropy(F.linear(hidden, weight, bias).float(), target)` without its logits.

    hidden: [..., H]. weight: [V, H]. target: integers [...]; tokens whose target is ignore_index
    cost nothing. bias: [V].
    reduction: "mean", "sum" or "none"; divisor: what to divide the sum by instead (gradient
    accumulation). values, selection: the entries of a frozen weight that train, as in
    `selective_linear`. Returns a scalar, or [...] for "none", fp32 (fp64 for fp64). Where no token
    has a target, the mean is NaN and all gradients are zero, as in torch.

    token_weights: a factor a token, constant: a tensor [...] (tokens of weight 0 cost nothing), or
    a function that is given the `Tokens` of a chunk and returns [c], so that a weight can depend on
    what the model predicts for that token (for a rank among all tokens, use "none"):

        linear_cross_entropy(..., token_weights=lambda tokens: tokens.probability)

    The mean is over the tokens that have a target, whatever they weigh.
    return_entropy: also returns the entropy of each token's prediction in nats, [...], 0 where
    there is no target; it has a gradient.

    Kept for backward: one gradient the size of the hidden states that have a target, and the
    gradients of what trains of the head; both are computed in the forward. With "none" over a head
    that trains, and with return_entropy, the hidden states are kept instead, and backward makes
    each chunk of logits again. On a GPU tokens that cost nothing are masked, not left out, so that
    nothing waits for the device (but for a function of tokens), and the gradient kept is as large
    as all hidden states; 512 tokens' logits exist at a time, or more.
    Raises ValueError and TypeError that name the argument; double backward raises RuntimeError.
    Source: Wijmans et al., 2024 (Cut Your Losses); Hsu et al., 2024 (Liger). Weights: Wu et al.,
    2025 (dynamic fine-tuning).
    """
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction: expected 'none', 'mean' or 'sum', got {reduction!r}")
    if reduction == "none" and divisor is not None:
        raise ValueError(f"divisor: reduction='none' divides by nothing, got {divisor!r}")
    _check(hidden, weight, target)
    check_weights(token_weights, target)
    if (values is None) != (selection is None):
        raise ValueError("values: give values and selection together")
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    shape = target.shape
    tokens = _counted(hidden, target, ignore_index, token_weights, return_entropy)
    if not room.takes_all_tokens(hidden):  # a look would wait for the device
        _check_classes(tokens.target, weight.size(0), ignore_index)
    layout = None if selection is None else selection.to(weight.device).layout
    if divisor is None:
        divisor = tokens.number if reduction == "mean" else 1
    if reduction != "none" and not return_entropy:
        counted = tokens.target, tokens.weights, tokens.number, tokens.ignored
        head = weight, bias, values, layout
        total = _LinearCrossEntropy.apply(tokens.hidden, *head, *counted)
        return total / divisor
    objective = CrossEntropy(tokens.target, tokens.weights, return_entropy)
    losses, *entropy = each_token(
        objective, tokens.hidden, weight, bias, values, layout, tokens.ignored
    )
    loss = tokens.in_place(losses, shape) if reduction == "none" else losses.sum() / divisor
    return (loss, tokens.in_place(entropy[0], shape)) if return_entropy else loss


class _Counted(NamedTuple):
    """The tokens that a loss is taken of. hidden: [n, H]. target: [n]. weights: [n] or a function.

    number: of the tokens that have a target; a tensor where the device alone knows it.
    chosen: [n], which of all they are; None where all are here, and those without a target, or of
    no weight, are `ignored`, [n].
    """

    hidden: torch.Tensor
    target: torch.Tensor
    weights: TokenWeights | None
    number: int | torch.Tensor
    chosen: torch.Tensor | None
    ignored: torch.Tensor | None

    def in_place(self, numbers: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """numbers [n] of these among all of `shape`; the others have 0."""
        if self.chosen is not None and numbers.numel() < shape.numel():
            numbers = numbers.new_zeros(shape.numel()).index_copy(0, self.chosen, numbers)
        return numbers.view(shape)


def _counted(
    hidden: torch.Tensor,
    target: torch.Tensor,
    ignore_index: int,
    weights: TokenWeights | None,
    return_entropy: bool,
) -> _Counted:
    """What counts of hidden [..., H] and target [...].

    Tokens of weight 0 do not, unless their entropy is wanted. A function of tokens is shown those
    that have a target and no others, so they are looked for, on every device.
    """
    flat, target = hidden.reshape(-1, hidden.size(-1)), target.reshape(-1)
    has_target = target != ignore_index
    counts = has_target
    if isinstance(weights, torch.Tensor):
        weights = weights.reshape(-1)
        if not return_entropy:
            counts = has_target & (weights != 0)
    if room.takes_all_tokens(hidden) and (weights is None or isinstance(weights, torch.Tensor)):
        ignored = ~counts
        if weights is not None:
            weights = weights.masked_fill(ignored, 0)
        target = target.masked_fill(ignored, 0)
        return _Counted(flat, target, weights, has_target.sum(), None, ignored)
    chosen = counts.nonzero().squeeze(1)  # [n]
    number = chosen.size(0) if counts is has_target else int(has_target.sum())
    if chosen.size(0) < target.size(0):
        flat, target = flat.index_select(0, chosen), target.index_select(0, chosen)
        if isinstance(weights, torch.Tensor):
            weights = weights.index_select(0, chosen)
    return _Counted(flat, target, weights, number, chosen, None)


def _check(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> None:
    """Raise for shapes and dtypes that do not go together."""
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


def _check_classes(target: torch.Tensor, classes: int, ignore_index: int) -> None:
    """Raise for a class that there is not. A dry run has none."""
    if target.numel() and not (is_compiling() or isinstance(target, FakeTensor)):
        low, high = map(int, target.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(
                f"target: expected classes in [0, {classes}) or {ignore_index}, got {low} to {high}"
            )


class _LinearCrossEntropy(torch.autograd.Function):
    """The sum of the losses. hidden: [n, H]; target to ignored: of `_Counted`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        values: torch.Tensor | None,
        layout: Any,
        target: torch.Tensor,
        token_weights: TokenWeights | None,
        number: int | torch.Tensor,
        ignored: torch.Tensor | None,
    ) -> torch.Tensor:
        needs = ctx.needs_input_grad[:4]
        total = hidden.new_zeros((), dtype=wide_dtype(hidden))
        grads = HeadGradients(hidden, weight, bias, values, layout, needs)
        for chunk in room.chunks(hidden, weight, bias, ignored):
            logits, classes = chunk.logits, target[chunk.rows, None]
            losses = chunk.norm - logits.gather(1, classes)
            weights = weigh(token_weights, losses, target, chunk)
            total += chunk.counted(losses if weights is None else losses * weights).sum()
            if any(needs):
                # Softmax, in place, for the logits are of no more use; 0 where there is no target.
                logits.sub_(chunk.norm_or_infinity).exp_()
                ones = chunk.counted(torch.ones_like(losses))
                logits.scatter_add_(1, classes, ones.neg_())
                if weights is not None:
                    logits.mul_(weights)
                grads.add(chunk.rows.start, chunk.hidden, logits)
        ctx.save_for_backward(*grads.all())
        ctx.any = hidden.size(0) > 0 if ignored is None else number > 0
        return total

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # The mean over no token is NaN, its gradient in torch is zero, and NaN times zero would be
        # neither.
        scale: Any = grad_output
        if isinstance(ctx.any, torch.Tensor):
            scale = grad_output.where(ctx.any, 1)
        elif not ctx.any:
            scale = 1
        grads = [None if grad is None else grad * scale for grad in ctx.saved_tensors]
        return *grads, None, None, None, None, None
