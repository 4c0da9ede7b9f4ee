"""Budgets: how much of a model trains. One file a family."""

from .amounts import Allowance, Amount, Count, Density, LikeLora, Share
from .flops import Flops
from .patterns import NM, DensityPerRow, PerRow

__all__ = [
    "NM",
    "Allowance",
    "Amount",
    "Count",
    "Density",
    "DensityPerRow",
    "Flops",
    "LikeLora",
    "PerRow",
    "Share",
]
