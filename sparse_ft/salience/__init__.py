"""Choosing what trains: scores, budgets, and `select`, which puts them together into a Plan."""

from . import layer_scores, scores
from .budgets import NM, Flops, LikeLora, PerRow, Share
from .ranking import select
from .score import Score

__all__ = [
    "NM",
    "Flops",
    "LikeLora",
    "PerRow",
    "Score",
    "Share",
    "layer_scores",
    "scores",
    "select",
]
