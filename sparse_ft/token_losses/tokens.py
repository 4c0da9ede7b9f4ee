"""What the weight of a token in a loss may depend on, and the weights that were asked for."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..messages import described
from .chunks import Chunk, entropy_of


class Tokens:
    """Some tokens, as the model sees them now. Nothing here has a gradient.

    loss: the cross-entropy of each, [c], in fp32 (fp64 for fp64). target: its class, [c].
    """

    def __init__(self, loss: torch.Tensor, target: torch.Tensor, chunk: Chunk) -> None:
        self.loss, self.target = loss, target
        self._chunk = chunk

    @property
    def probability(self) -> torch.Tensor:
        """Of the target: `exp(-loss)`, [c]."""
        return self.loss.neg().exp_()

    @functools.cached_property
    def entropy(self) -> torch.Tensor:
        """Of the predicted distribution, in nats, [c]. Costs a pass over their logits."""
        return entropy_of(self._chunk.logits, self._chunk.norm)


TokenWeights = torch.Tensor | Callable[[Tokens], torch.Tensor]


def check_weights(token_weights: Any, target: torch.Tensor) -> None:
    """Raise for what cannot weigh the tokens of target [...]."""
    if token_weights is None or (
        callable(token_weights) and not isinstance(token_weights, torch.Tensor)
    ):
        return
    if not isinstance(token_weights, torch.Tensor):
        raise TypeError(
            "token_weights: expected a tensor shaped like target, or a function of Tokens, got"
            f" {described(token_weights)}"
        )
    if token_weights.shape != target.shape:
        raise ValueError(
            f"token_weights: expected shape {tuple(target.shape)} as target, got"
            f" {tuple(token_weights.shape)}"
        )
    if token_weights.requires_grad:
        raise ValueError(
            "token_weights: they require grad, and are constants here; detach them, or multiply the"
            " losses of reduction='none' by them"
        )


def weigh(
    token_weights: TokenWeights | None, losses: torch.Tensor, target: torch.Tensor, chunk: Chunk
) -> torch.Tensor | None:
    """The weights of a chunk's tokens, [c, 1], wide; None where none were asked for.

    losses: [c, 1]. target: of all tokens, [n], as `token_weights` if that is a tensor.
    """
    if token_weights is None:
        return None
    if isinstance(token_weights, torch.Tensor):
        return token_weights[chunk.rows, None].to(losses.dtype)
    weights = token_weights(Tokens(losses.squeeze(1), target[chunk.rows], chunk))
    if not isinstance(weights, torch.Tensor) or weights.shape != losses.shape[:1]:
        raise ValueError(
            "token_weights: the function must return one weight a token, a Tensor"
            f" [{losses.size(0)}], got {described(weights)}"
        )
    return weights.detach().to(losses.dtype)[:, None]
