"""Peak memory of a call, seen twice: by torch's allocator and by the system's resident set. Meant for a process of its own."""

import ctypes

from torch.profiler import ProfilerActivity, profile

from bench.demo import measure

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def allocator_peak(call):
    """(most bytes alive at once, bytes alive at the end) that torch's allocator gave out during `call()`, from its own events.

    Sees every tensor, also those made inside of ops; not what a library allocates behind torch's back: see `resident_peak`.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        call()
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]" and e.device_type().name == "CPU"]
    return running_peak(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))


def running_peak(changes):
    """(highest, last) of the running sum of `changes`."""
    level = peak = 0
    for change in changes:
        level += change
        peak = max(peak, level)
    return peak, level


def keep_freed_blocks():
    """From here on freed memory stays with the process, as a GPU's caching allocator keeps it: for timings.

    Otherwise every result over 32 MiB is mapped anew in each call, and the page faults are what is measured.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def resident_peak(call):
    """Highest resident set during `call()` above the one before it, in bytes; None where the system keeps no such mark.

    Call `measure.return_freed_blocks()` first of all in the process, or holes in the heap hide what is alive.
    """
    measure.settle()
    level = measure.resident_bytes()
    if not measure.reset_peak():
        return None
    call()
    return measure.peak_resident_bytes() - level
