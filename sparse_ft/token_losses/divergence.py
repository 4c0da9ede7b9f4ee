"""How far what is predicted for each token is from what a reference predicts, without logits."""

import torch

from ..selection import Selection
from .chunks import Chunk, logits_of
from .each import each_token

DIRECTIONS = "forward", "reverse"


def linear_kl_divergence(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    reference_hidden: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    reference_weight: torch.Tensor | None = None,
    reference_bias: torch.Tensor | None = None,
    direction: str = "forward",
    reduction: str = "none",
    values: torch.Tensor | None = None,
    selection: Selection | None = None,
) -> torch.Tensor:
    """The Kullback-Leibler divergence of two heads' predictions, without their logits.

    forward: `sum_v q_v * (log(q_v) - log(p_v))`, KL(reference || model); reverse:
    `sum_v p_v * (log(p_v) - log(q_v))`, KL(model || reference), where p is the softmax of
    `F.linear(hidden, weight, bias)` and q that of the reference, which has no gradient.

    hidden, reference_hidden: [..., H]. weight: [V, H], bias: [V]; of the reference the same ones
    unless they are given. values, selection: as in `linear_cross_entropy`. reduction: "none" gives
    [...], "mean" and "sum" a scalar; fp32 (fp64 for fp64). Logits of a few tokens at a time exist,
    those of both. Raises ValueError that names the argument.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction: expected 'forward' or 'reverse', got {direction!r}")
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction: expected 'none', 'mean' or 'sum', got {reduction!r}")
    if reference_hidden.shape[:-1] != hidden.shape[:-1]:
        raise ValueError(
            f"reference_hidden: expected shape {tuple(hidden.shape[:-1])} without its last, as"
            f" hidden, got {tuple(reference_hidden.shape[:-1])}"
        )
    if (values is None) != (selection is None):
        raise ValueError("values: give values and selection together")
    reference_weight = weight if reference_weight is None else reference_weight
    reference_bias = bias if reference_bias is None else reference_bias
    if reference_weight.size(0) != weight.size(0):
        raise ValueError(
            f"reference_weight: expected {weight.size(0)} classes, got {reference_weight.size(0)}"
        )
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, reference_hidden = hidden.to(dtype), reference_hidden.to(dtype)
    objective = Divergence(
        reference_hidden.detach().reshape(-1, reference_hidden.size(-1)),
        reference_weight.detach(),
        None if reference_bias is None else reference_bias.detach(),
        direction,
    )
    layout = None if selection is None else selection.to(weight.device).layout
    flat = hidden.reshape(-1, hidden.size(-1))
    (found,) = each_token(objective, flat, weight, bias, values, layout)
    if reduction == "none":
        return found.view(hidden.shape[:-1])
    return found.sum() if reduction == "sum" else found.mean()


class Divergence:
    """hidden: of the reference, [n, H]; weight: [V, H]; bias: [V]."""

    outputs = 1

    def __init__(
        self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, direction: str
    ) -> None:
        self.hidden, self.weight, self.bias = hidden, weight, bias
        self.is_forward = direction == "forward"

    def _log_q(self, chunk: Chunk) -> torch.Tensor:
        logits = logits_of(self.hidden[chunk.rows], self.weight, self.bias)
        return _log_softmax(logits.to(chunk.logits.dtype))

    def numbers(self, chunk: Chunk) -> tuple[torch.Tensor, ...]:
        return (self._found(self._log_q(chunk), _log_softmax(chunk.logits)),)

    def _found(self, log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
        """[c]"""
        if self.is_forward:
            return log_q.exp().mul_(log_q - log_p).sum(1)
        return log_p.exp().mul_(log_p - log_q).sum(1)

    def gradient(self, chunk: Chunk, grads: list[torch.Tensor | None]) -> torch.Tensor:
        """Forward: p - q; reverse: p * (log(p) - log(q) - KL)."""
        of_found = grads[0]
        if of_found is None:
            return chunk.logits.zero_()
        log_q, log_p = self._log_q(chunk), _log_softmax(chunk.logits)
        if self.is_forward:
            return log_p.exp_().sub_(log_q.exp_()).mul_(of_found)
        found = self._found(log_q, log_p)[:, None]
        return log_p.exp().mul_(log_p.sub_(log_q).sub_(found)).mul_(of_found)


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Finite also where a probability is 0: such a class counts as nothing."""
    log_p = logits.log_softmax(1)
    return log_p.clamp_(min=torch.finfo(log_p.dtype).min)
