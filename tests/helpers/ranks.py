"""Runs a worker script in several processes over gloo on loopback.

`python WORKER RANK WORLD FOLDER [argument …]`.
"""

import os
import subprocess
import sys

import torch


def start(worker: str, folder, *arguments: str, world: int = 2, seconds: float = 120) -> list[str]:
    """What each rank printed; raises AssertionError with it where one failed or took longer than
    `seconds`.
    """
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    command = [sys.executable, worker]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(folder), *arguments],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(said)
    return said


def join(rank: int, world: int, folder) -> None:
    """Become one of the ranks. The store is a file: no port is needed."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )


def results(folder, world: int = 2) -> list:
    """What the workers saved as FOLDER/RANK.pt."""
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]
