"""A whole training step as a CUDA graph: `sft.capture`."""

from .captured import Captured, capture

__all__ = ["Captured", "capture"]
