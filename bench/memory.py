"""Honest byte counts: what a forward keeps, the optimiser's state, and peaks, seen twice.

By torch's allocator and by the system's resident set, which is meant for a process of its own.
"""

import contextlib
import ctypes
import gc
import resource
import sys

import torch
from torch.profiler import ProfilerActivity, profile

from sparse_ft.memory.watching import Watching

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # glibc's malloc.h


def allocator_peak(call):
    """(most bytes alive at once, bytes alive at the end) that torch's allocator gave out during
    `call()`, from its own events.

    Sees every tensor, also those made inside of ops; not what a library allocates behind torch's
    back: see `resident_peak`.
    """
    with without_collections():
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            call()
    events = [
        e
        for e in trace.profiler.kineto_results.events()
        if e.name() == "[memory]" and e.device_type().name == "CPU"
    ]
    return running_peak(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))


@contextlib.contextmanager
def without_collections():
    """What was garbage before is gone, and nothing is collected within: what earlier calls left
    would be counted against what is allocated here.
    """
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def running_peak(changes):
    """(highest, last) of the running sum of `changes`."""
    level = peak = 0
    for change in changes:
        level += change
        peak = max(peak, level)
    return peak, level


def keep_freed_blocks():
    """From here on freed memory stays with the process, as a GPU's caching allocator keeps it.

    For timings.

    Otherwise every result over 32 MiB is mapped anew in each call, and the page faults are what is
    measured.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def resident_peak(call):
    """Highest resident set during `call()` above the one before it, in bytes.

    None where the system keeps no such mark.

    Call `return_freed_blocks()` first of all in the process, or holes in the heap hide what is
    alive.
    """
    settle()
    level = resident_bytes()
    if not reset_peak():
        return None
    call()
    return peak_resident_bytes() - level


def optimizer_bytes(optimizer):
    """Bytes of every tensor in the optimiser's state."""
    return sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    )


def saved_bytes(model, loss):
    """Bytes that one forward keeps for its backward.

    Unique storages, parameters and buffers excluded.

    `loss` is a callable that runs the forward and returns the scalar. A view counts with its whole
    storage, because that is what it keeps alive.
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
    """Free garbage and give unused heap pages back to the system, so that the next reading starts
    level.
    """
    gc.collect()
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except AttributeError:  # a libc without malloc_trim
            pass


def return_freed_blocks():
    """From here on give freed blocks over 1 MiB back to the system at once, instead of keeping them
    in the heap.

    To be called first of all. The heap of a long run holds hundreds of MiB of holes whose size is
    chance; without them the resident set shows what is alive. It costs time (pages are faulted in
    anew), so timed passes go without.
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
