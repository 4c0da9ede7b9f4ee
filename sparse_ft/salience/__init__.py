"""Choosing what trains: scores, budgets, and `select`, which puts them together into a Plan."""

from .ranking import select

__all__ = ["select"]
