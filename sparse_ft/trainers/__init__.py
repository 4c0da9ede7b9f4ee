"""What trainers of other libraries need to know: checkpoints as small as the run, and refusals.

| name | of |
|---|---|
| `SparseCallback` | transformers' Trainer, and TRL's trainers |
| `ScheduleCallback` | transformers' Trainer, and TRL's trainers |
| `SparseCheckpoint` | Lightning |
| `axolotl.SparsePlugin` | axolotl, by the name of its class in the config |

Each is imported from its library when it is asked for.
"""

import importlib
from typing import Any

_ROOMS = {
    "ScheduleCallback": "scheduling",
    "SparseCallback": "hugging_face",
    "SparseCheckpoint": "lightning",
}
__all__ = ["ScheduleCallback", "SparseCallback", "SparseCheckpoint"]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
