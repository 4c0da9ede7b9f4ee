"""Losses of one's own for `sft.lean(model, loss=...)` that hold a model near its base.

The base is the model itself with its origins in place (`sft.disabled`): no second model is loaded.
"""

from collections.abc import Callable

import torch
from torch import nn

from .deltas import disabled
from .token_losses import HeadTokens, TokenWeights


class Anchored:
    """`token_weight * cross_entropy + strength * KL` of each token, KL between base and model.

    model: converted by `sft.convert(..., origin=True)`. token_weights: as in
    `functional.linear_cross_entropy`. direction: "forward" is KL(base || model), "reverse"
    KL(model || base). Each training step costs a forward of the base more, without dropout and
    without gradients, and keeps its last hidden states until the loss is taken; where the head
    trains, a copy of the base's head, too.

        sft.lean(model, loss=Anchored(model, token_weights=lambda each: each.probability))

    Source: Zhu et al., 2025 (anchored supervised fine-tuning); the paper writes the reverse
    divergence, its released code takes the forward one with strength 0.1: the default here.
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float = 0.1,
        token_weights: TokenWeights | None = None,
        direction: str = "forward",
    ) -> None:
        self.model, self.strength = model, strength
        self.token_weights, self.direction = token_weights, direction
        self.base: HeadTokens | None = None

    def prepare(self, tokens_now: Callable[[], HeadTokens]) -> None:
        """Called before each training forward. tokens_now: runs it with the model as it is."""
        with disabled(self.model):
            base = tokens_now()
            if base.head_trains:
                base.weight = base.weight.detach().clone()
                base.bias = None if base.bias is None else base.bias.detach().clone()
        self.base = base

    def __call__(self, tokens: HeadTokens) -> torch.Tensor:
        base, self.base = self.base, None
        if base is None:
            raise RuntimeError("Anchored: it serves as the loss of sft.lean(model, loss=...) only")
        losses = tokens.cross_entropy(self.token_weights)
        if self.strength == 0:
            return losses
        far = tokens.kl_divergence(base.hidden, base.weight, base.bias, self.direction)
        return losses + self.strength * far
