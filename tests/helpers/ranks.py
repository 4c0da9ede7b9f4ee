"""Runs a worker script in several processes over gloo on loopback.

`python WORKER RANK WORLD FOLDER [argument …]`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import traceback

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


def start_forked(
    worker: str, folder, *arguments: str, world: int, seconds: float = 60, **environment: str
) -> str:
    """Run `python WORKER WORLD FOLDER [argument …]`, which imports what it needs once and calls
    `fork`. Returns what it printed.
    """
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    process = subprocess.Popen(
        [sys.executable, worker, str(world), str(folder), *arguments], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0, said
    return said


def fork(world: int, folder, run) -> None:
    """Become `world` processes, each of which joins the others and calls `run(rank)`; the first
    that fails ends all.
    """
    children = {}
    for rank in range(world):
        child = os.fork()
        if not child:
            become(rank, world, folder, run)
        children[child] = rank
    while children:
        child, status = os.wait()
        rank = children.pop(child)
        if status:
            sys.exit(f"rank {rank} ended with status {status}")  # who started this kills the rest


def become(rank: int, world: int, folder, run) -> None:
    """In a child, which never returns."""
    try:
        join(rank, world, folder)
        torch.save(run(rank), os.path.join(folder, f"{rank}.pt"))
        torch.distributed.destroy_process_group()
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def join(rank: int, world: int, folder) -> None:
    """Become one of the ranks. The store is a file: no port is needed."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )


def results(folder, world: int = 2) -> list:
    """What the workers saved as FOLDER/RANK.pt."""
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]
