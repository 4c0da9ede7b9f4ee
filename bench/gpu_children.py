"""Processes that end with the one that started them, however that ends.

A benchmark that goes on after its script was killed would time itself beside the next one.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
GRACE = 5.0  # seconds from SIGTERM to SIGKILL


def start(
    command: Sequence[str], own_group: bool = False, **keywords: Any
) -> subprocess.Popen[Any]:
    """`subprocess.Popen(command)`, killed when this process dies.

    own_group: the process and all that it starts can be ended by `end`. It stays in the session:
    who ends the session ends it too.
    """
    library = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def prepare() -> None:
        if own_group:
            os.setpgid(0, 0)
        if library is not None:
            library.prctl(DEATH_SIGNAL, signal.SIGKILL)

    return subprocess.Popen(command, preexec_fn=prepare, **keywords)


def end(child: subprocess.Popen[Any], grace: float = GRACE) -> None:
    """End a child that was started with `own_group`, and all of its group."""
    _signal_group(child.pid, signal.SIGTERM)
    limit = time.monotonic() + grace
    while child.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    _signal_group(child.pid, signal.SIGKILL)
    child.wait()


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        pass
