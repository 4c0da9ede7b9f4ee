"""The cross-entropy of each token, and the entropy of what is predicted for it."""

import torch

from .chunks import Chunk, entropy_of
from .tokens import TokenWeights, weigh


class CrossEntropy:
    """`weight_i * cross_entropy_i` and, if it is wanted, the entropy of the predicted distribution.

    target: [n]. token_weights: [n] or a function of `Tokens`; constants.
    """

    def __init__(
        self, target: torch.Tensor, token_weights: TokenWeights | None, wants_entropy: bool
    ) -> None:
        self.target, self.token_weights = target, token_weights
        self.wants_entropy = wants_entropy
        self.outputs = 2 if wants_entropy else 1
        self.weights: list[torch.Tensor] = []  # what a function gave, for the tokens so far

    def numbers(self, chunk: Chunk) -> tuple[torch.Tensor, ...]:
        losses = chunk.norm - chunk.logits.gather(1, self.target[chunk.rows, None])
        weights = weigh(self.token_weights, losses, self.target, chunk)
        if weights is not None:
            self._keep(weights)
            losses = losses * weights
        if not self.wants_entropy:
            return (losses.squeeze(1),)
        return losses.squeeze(1), entropy_of(chunk.logits, chunk.norm)

    def _keep(self, weights: torch.Tensor) -> None:
        """Backward weighs as the forward did, whatever the function would say then."""
        if not isinstance(self.token_weights, torch.Tensor):
            self.weights.append(weights)

    def _weights(self, chunk: Chunk) -> torch.Tensor | None:
        if self.token_weights is None:
            return None
        if isinstance(self.token_weights, torch.Tensor):
            return self.token_weights[chunk.rows, None]
        if len(self.weights) > 1:
            self.weights = [torch.cat(self.weights)]
        return self.weights[0][chunk.rows]

    def gradient(self, chunk: Chunk, grads: list[torch.Tensor | None]) -> torch.Tensor:
        of_loss = grads[0]
        of_entropy = grads[1] if self.wants_entropy else None
        weights = self._weights(chunk)
        if of_loss is None:
            of_loss = torch.zeros_like(chunk.norm)
        elif weights is not None:
            of_loss = of_loss * weights
        if of_entropy is None:
            made = chunk.logits.sub_(chunk.norm).exp_().mul_(of_loss)
        else:
            # of the entropy H to a logit: -p * (log(p) + H)
            entropy = entropy_of(chunk.logits, chunk.norm)[:, None]
            log_p = chunk.logits.sub_(chunk.norm)
            log_p.clamp_(min=torch.finfo(log_p.dtype).min)
            p = log_p.exp()
            made = log_p.add_(entropy).mul_(-of_entropy).add_(of_loss).mul_(p)
        classes = self.target[chunk.rows, None]
        return made.scatter_add_(1, classes, -of_loss)
