"""HeadTokens: the tokens of a training step, as a loss of one's own is given them."""

from typing import Any

import torch

from ..messages import described
from ..selection import Selection
from .cross_entropy import CrossEntropy
from .divergence import linear_kl_divergence
from .each import each_token
from .tokens import TokenWeights, check_weights


class HeadTokens:
    """The tokens that have a target, before the output head. Their logits do not exist.

    hidden: [n, H]. target: [n]. places: [n], where they stand among all tokens of the batch.
    weight: [V, H] and bias: [V], of the head. values, selection: which entries of it train, or
    None.
    """

    def __init__(
        self,
        hidden: torch.Tensor,
        target: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        values: torch.Tensor | None = None,
        selection: Selection | None = None,
        ignore_index: int = -100,
    ) -> None:
        if torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        self.places = (target != ignore_index).nonzero().squeeze(1)
        every = self.places.size(0) == target.size(0)
        self.hidden = hidden if every else hidden.index_select(0, self.places)
        self.target = target if every else target.index_select(0, self.places)
        self.weight, self.bias = weight, bias
        self.values, self.selection = values, selection

    @property
    def head_trains(self) -> bool:
        """Whether anything of the head does."""
        own = (self.weight, self.bias, self.values)
        return any(each is not None and each.requires_grad for each in own)

    def cross_entropy(
        self, token_weights: TokenWeights | None = None, return_entropy: bool = False
    ) -> Any:
        """The loss of each token, [n], times its weight; and its entropy [n], if that is wanted.

        As `functional.linear_cross_entropy` with reduction="none".
        """
        check_weights(token_weights, self.target)
        objective = CrossEntropy(self.target, token_weights, return_entropy)
        layout = None
        if self.selection is not None:
            layout = self.selection.to(self.weight.device).layout
        found = each_token(objective, self.hidden, self.weight, self.bias, self.values, layout)
        return found if return_entropy else found[0]

    def kl_divergence(
        self,
        reference_hidden: torch.Tensor,
        reference_weight: torch.Tensor | None = None,
        reference_bias: torch.Tensor | None = None,
        direction: str = "forward",
    ) -> torch.Tensor:
        """From what a reference predicts for each of these tokens, [n].

        reference_hidden: [n, H]. See `functional.linear_kl_divergence`.
        """
        return linear_kl_divergence(
            self.hidden,
            self.weight,
            reference_hidden,
            self.bias,
            reference_weight=reference_weight,
            reference_bias=reference_bias,
            direction=direction,
            values=self.values,
            selection=self.selection,
        )


def reduced(losses: Any, tokens: HeadTokens, reduction: str) -> torch.Tensor:
    """What a loss of one's own returned, [n], as the model reduces its own.

    The mean over no token is NaN without a gradient, as in torch.
    """
    number = tokens.target.size(0)
    if not isinstance(losses, torch.Tensor) or losses.shape != (number,):
        raise ValueError(
            f"loss: it must return one number a token, a Tensor [{number}], got {described(losses)}"
        )
    return losses.sum() if reduction == "sum" else losses.sum() / number
