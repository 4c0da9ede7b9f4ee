"""Deltas: what fine-tuning changed, kept exactly, put into a model and taken out bit for bit."""

from .applying import apply, remove
from .delta import Delta, Part
from .differences import diff
from .files import load_delta, save_delta

__all__ = ["Delta", "Part", "apply", "diff", "load_delta", "remove", "save_delta"]
