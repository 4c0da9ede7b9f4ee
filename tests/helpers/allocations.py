"""What a call allocates, as torch's allocator sees it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.append(str(Path(__file__).parents[2]))  # the benchmarks, behind the installed packages

from bench.memory import without_collections  # noqa: E402


class Allocated(NamedTuple):
    """Bytes: of all that was allocated, and the most that was alive at one time."""

    total: int
    most: int


def allocated_by(call: Callable[[], object], folder: Path) -> Allocated:
    """Runs `call()` once. folder: for the profiler's trace."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with without_collections():
        with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
            call()
    file = folder / "trace.json"
    profile.export_chrome_trace(str(file))
    events = json.loads(file.read_text())["traceEvents"]
    changes = [event for event in events if event["name"] == "[memory]"]
    live = most = total = 0
    for event in sorted(changes, key=lambda event: event["ts"]):
        change = event["args"]["Bytes"]
        live += change
        total += max(change, 0)
        most = max(most, live)
    return Allocated(total, most)
