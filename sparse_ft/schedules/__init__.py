"""Schedules: what trains changes while training goes on. Plain objects with `step()`."""

from .candidates import Candidates
from .rotating import Rotate
from .window import Window

__all__ = ["Candidates", "Rotate", "Window"]
