"""Deltas: what fine-tuning changed, kept exactly, put into a model and taken out bit for bit."""

from .applying import apply, remove
from .base import on_base
from .delta import Delta
from .differences import diff
from .engines import save_trl_patch, vllm_patches, write_slime_version
from .files import load_delta, save_delta
from .lora import export_lora
from .merging import merge
from .part import Part
from .scaling import lines, model_stock, momentum, wise_ft
from .sending import Patch, Patches, Receiver, patches
from .shira import export_shira, load_shira
from .supertuning import load_supertuning
from .switching import disabled

__all__ = [
    "Delta",
    "Part",
    "Patch",
    "Patches",
    "Receiver",
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
    "patches",
    "remove",
    "save_delta",
    "save_trl_patch",
    "vllm_patches",
    "wise_ft",
    "write_slime_version",
]
