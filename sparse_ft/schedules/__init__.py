"""Schedules: what trains changes while training goes on. Plain objects with `step()`."""

from .candidates import Candidates
from .reselecting import Every, Once
from .rotating import Rotate
from .window import Window

__all__ = ["Candidates", "Every", "Once", "Rotate", "Window"]
