"""Experts at their own cost: gradients of the experts that train, made of their own tokens."""

from .collecting import dry_tap
from .pieces import Pieces, pieces_of
from .weight import ExpertsWeight

__all__ = ["ExpertsWeight", "Pieces", "dry_tap", "pieces_of"]
