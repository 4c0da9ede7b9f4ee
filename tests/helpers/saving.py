"""What processes do that save to one path.

They are forks of a process that has imported sparse_ft and does nothing else.
"""

import multiprocessing
from typing import Any

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["sparse_ft"])


def save_often(path: str) -> None:
    """Forty plans, one after the other."""
    import sparse_ft as sft

    for i in range(40):
        sft.Plan({"a": sft.Rows([i])}).save(path)


def begin(path: str, pipe: Any) -> None:
    """Half a file; the rest when the other end of the pipe says so."""
    from sparse_ft._atomic import written_whole

    with written_whole(path) as file:
        file.write(b"half")
        file.flush()
        pipe.send("begun")
        pipe.recv()
