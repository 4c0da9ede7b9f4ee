"""Budgets: how much of a model trains. One file a family."""

from .amounts import Allowance, Amount, Count, Density, LikeLora, Share
from .patterns import NM, DensityPerRow, PerRow

__all__ = [
    "NM",
    "Allowance",
    "Amount",
    "Count",
    "Density",
    "DensityPerRow",
    "LikeLora",
    "PerRow",
    "Share",
]
