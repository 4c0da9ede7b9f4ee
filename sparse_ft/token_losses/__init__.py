"""Losses of single tokens, from the hidden states before a language model's head: the logits exist
for a few tokens at a time.
"""

from .cross_entropy import CrossEntropy
from .divergence import linear_kl_divergence
from .each import each_token
from .head_tokens import HeadTokens, reduced
from .tokens import Tokens, TokenWeights

__all__ = [
    "CrossEntropy",
    "HeadTokens",
    "TokenWeights",
    "Tokens",
    "each_token",
    "linear_kl_divergence",
    "reduced",
]
