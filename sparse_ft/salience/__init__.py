"""Choosing what trains: scores, budgets, and `select`, which puts them together into a Plan."""

from . import scores
from .budgets import NM, LikeLora, PerRow, Share
from .ranking import select
from .score import Score

__all__ = ["NM", "LikeLora", "PerRow", "Score", "Share", "scores", "select"]
