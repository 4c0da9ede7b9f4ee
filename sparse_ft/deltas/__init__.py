"""Deltas: what fine-tuning changed, kept exactly, put into a model and taken out bit for bit."""

from .applying import apply, remove
from .base import on_base
from .delta import Delta, Part
from .differences import diff
from .files import load_delta, save_delta
from .lora import export_lora
from .merging import merge
from .scaling import lines, model_stock, momentum, wise_ft
from .shira import export_shira, load_shira
from .supertuning import load_supertuning
from .switching import disabled

__all__ = [
    "Delta",
    "Part",
    "apply",
    "diff",
    "disabled",
    "export_lora",
    "export_shira",
    "lines",
    "load_delta",
    "load_shira",
    "load_supertuning",
    "merge",
    "model_stock",
    "momentum",
    "on_base",
    "remove",
    "save_delta",
    "wise_ft",
]
