"""Optimisers whose state and work follow the selected entries."""

from .selective_adamw import SelectiveAdamW

__all__ = ["SelectiveAdamW"]
