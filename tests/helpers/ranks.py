"""Runs a worker script in several processes over gloo on loopback.

`start` takes a script that is one rank, `python WORKER RANK WORLD FOLDER [argument …]`; as a
program, this file makes its processes: `python ranks.py WORLD FOLDER WORKER [argument …]`.
"""

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import traceback

import torch
from helpers import vision


def start(worker: str, folder, *arguments: str, world: int = 2, seconds: float = 300) -> str:
    """What the ranks printed; raises AssertionError with it where one failed or took longer than
    `seconds`.

    torch and sparse_ft are imported once for all of them: it takes seconds each.
    """
    return start_forked(__file__, folder, worker, *arguments, world=world, seconds=seconds)


def start_forked(
    worker: str, folder, *arguments: str, world: int, seconds: float = 300, **environment: str
) -> str:
    """Run `python WORKER WORLD FOLDER [argument …]`, which imports what it needs once and calls
    `fork`. Returns what it printed.
    """
    # Without the tests' torchvision, which is whole after vision.make_importable alone.
    folders = [p or os.getcwd() for p in sys.path if p != str(vision.FOLDER)]
    path = os.pathsep.join(folders)
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
    fork_each(world, lambda rank: joined(rank, world, folder, run))


def fork_each(world: int, run) -> None:
    """Become `world` processes, each of which calls `run(rank)`; the first that fails ends all."""
    children = {}
    for rank in range(world):
        child = os.fork()
        if not child:
            become(rank, run)
        children[child] = rank
    while children:
        child, status = os.wait()
        rank = children.pop(child)
        if status:
            sys.exit(f"rank {rank} ended with status {status}")  # who started this kills the rest


def become(rank: int, run) -> None:
    """In a child, which never returns."""
    try:
        run(rank)
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def joined(rank: int, world: int, folder, run) -> None:
    """One of the ranks, which saves what `run(rank)` returns."""
    join(rank, world, folder)
    torch.save(run(rank), os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


def run_script(rank: int, world: str, folder: str, worker: str, arguments: list[str]) -> None:
    """A worker as if it were started by itself."""
    sys.argv = [worker, str(rank), world, folder, *arguments]
    runpy.run_path(worker, run_name="__main__")


def join(rank: int, world: int, folder) -> None:
    """Become one of the ranks. The store is a file: no port is needed."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )


def leave() -> None:
    """End this rank, here. Where a DistributedDataParallel outlives its process group, freeing it
    may wait for ever, for a thread that waits for Python.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def results(folder, world: int = 2) -> list:
    """What the workers saved as FOLDER/RANK.pt."""
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def main(world: str, folder: str, worker: str, *arguments: str) -> None:
    import sparse_ft  # noqa: F401

    fork_each(int(world), lambda rank: run_script(rank, world, folder, worker, list(arguments)))


if __name__ == "__main__":
    main(*sys.argv[1:])
