"""The memory-lean backward: modules of a model keep for backward only what backward needs."""

from .contextual import Contextual
from .conv import selected_channels
from .model import is_lean, lean, lean_state, restore_lean_state, unlean
from .report import LeanReport

__all__ = [
    "Contextual",
    "LeanReport",
    "is_lean",
    "lean",
    "lean_state",
    "restore_lean_state",
    "selected_channels",
    "unlean",
]
