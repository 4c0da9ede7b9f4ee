"""Honest byte counts: optimiser state, what the forward keeps for backward, and the process's resident-set peak."""

import ctypes
import gc
import resource
import sys

import torch

from sparse_ft.memory.ledger import Watching

M_MMAP_THRESHOLD = -3  # glibc's malloc.h


def optimizer_bytes(optimizer):
    """Bytes of every tensor in the optimiser's state."""
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value))


def saved_bytes(model, loss):
    """Bytes that one forward keeps for its backward: unique storages, parameters and buffers excluded.

    `loss` is a callable that runs the forward and returns the scalar. A view counts with its whole storage, because
    that is what it keeps alive.
    """
    watching = Watching(model)
    try:
        with watching:
            output = loss()
        return watching.ledger(output).total
    finally:
        watching.release()


def _status(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field + ":"))


def settle():
    """Free garbage and give unused heap pages back to the system, so that the next reading starts level."""
    gc.collect()
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except AttributeError:  # a libc without malloc_trim
            pass


def return_freed_blocks():
    """From here on give freed blocks over 1 MiB back to the system at once, instead of keeping them in the heap.

    To be called first of all. The heap of a long run holds hundreds of MiB of holes whose size is chance; without
    them the resident set shows what is alive. It costs time (pages are faulted in anew), so timed passes go without.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)


def resident_bytes():
    """Resident set of this process now."""
    if sys.platform == "linux":
        return _status("VmRSS")
    return peak_resident_bytes()


def reset_peak():
    """Start the resident-set high-water mark anew; returns False where the system cannot."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        return True
    except OSError:
        return False


def peak_resident_bytes():
    """Highest resident set since the process began or since reset_peak()."""
    if sys.platform == "linux":
        return _status("VmHWM")
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
