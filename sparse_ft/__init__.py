"""sparse_ft: fine-tune a chosen part of a network at the cost of that part.

import sparse_ft as sft
plan = sft.select(model, density=0.01, structure="columns", batches=batches[:4])
print(sft.convert(model, plan, lean=True))
optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-3)
"""

from . import deltas, functional, memory, nn, quantised, recipes
from ._version import __version__ as __version__
from .capturing import capture
from .checkpoint import load, state_dict
from .conversion import convert, revert
from .converted import summary, sync
from .deltas import (
    Delta,
    apply,
    diff,
    disabled,
    export_lora,
    export_shira,
    load_delta,
    load_shira,
    load_supertuning,
    merge,
    patches,
    remove,
    save_delta,
)
from .diagnosis import backends
from .lean_modules import Contextual, lean
from .memory import Bytes, estimate
from .merging_quantised import merge_quantised
from .optim import SelectiveAdamW
from .places import matrix_shape
from .plan import Plan
from .reselection import reselect
from .restoring import restore
from .salience import NM, Flops, LikeLora, PerRow, Score, Share, layer_scores, scores, select
from .scaling import scale_updates
from .schedules import Candidates, Every, Once, Rotate, Window
from .selection import Blocks, Columns, Entries, Rows, Selection, from_mask
from .units import units
from .zeroth_order import ZerothOrder

__all__ = [
    "Blocks",
    "Bytes",
    "Candidates",
    "Columns",
    "Contextual",
    "Delta",
    "Entries",
    "Every",
    "Flops",
    "LikeLora",
    "NM",
    "Once",
    "PerRow",
    "Plan",
    "Rotate",
    "Rows",
    "Score",
    "Selection",
    "SelectiveAdamW",
    "Share",
    "Window",
    "ZerothOrder",
    "apply",
    "backends",
    "capture",
    "convert",
    "deltas",
    "diff",
    "disabled",
    "estimate",
    "export_lora",
    "export_shira",
    "from_mask",
    "functional",
    "layer_scores",
    "lean",
    "load",
    "load_delta",
    "load_shira",
    "load_supertuning",
    "matrix_shape",
    "memory",
    "merge",
    "merge_quantised",
    "nn",
    "patches",
    "quantised",
    "recipes",
    "remove",
    "reselect",
    "restore",
    "revert",
    "save_delta",
    "scale_updates",
    "scores",
    "select",
    "state_dict",
    "summary",
    "sync",
    "units",
]


def __getattr__(name: str) -> object:
    """What needs another library is imported from it when it is asked for."""
    if name == "ScheduleCallback":
        from .trainers import ScheduleCallback

        return ScheduleCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
