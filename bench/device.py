"""Time and memory of calls on a device.

Events on a GPU, the clock of the host elsewhere, so that all of it runs on a CPU.
"""

import torch

from bench import memory
from bench.harness import interleave
from bench.stats import Times

# Bytes written before each sample: many times the cache, and longer than Python takes to launch
# what follows.
FLUSH = 1 << 30


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Events:
    """A sample between two events; the cache is cold and the launch queue full when it starts."""

    def __init__(self, device):
        self.scratch = torch.empty(FLUSH, dtype=torch.uint8, device=device)

    def __call__(self, call, repeats, clock):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.scratch.zero_()
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


def rounds(variants, device, seconds, **limits):
    """`harness.interleave` on a device: {name: {round: seconds}}.

    On a GPU each sample is one call.
    """
    if device.type == "cuda":
        limits = {"warm_up": 3, "most": 200, "timer": Events(device), "shortest": 0.0} | limits
    return interleave(variants, seconds, **limits)


def compare(variants, device, seconds, **limits):
    """{name: Times} of {name: callable}, in turns, for about `seconds` in all."""
    found = rounds(variants, device, seconds, **limits)
    return {name: Times.of(samples.values()) for name, samples in found.items()}


def peak_bytes(call, device):
    """The most bytes alive at one time in `call()` beyond those alive before it."""
    if device.type != "cuda":
        return memory.allocator_peak(call)[0]
    synchronise(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    synchronise(device)
    return torch.cuda.max_memory_allocated(device) - before


def count_launches(call, device):
    """Kernels and copies that `call()` puts on the device; None where nothing can count them."""
    if device.type != "cuda":
        return None
    synchronise(device)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    try:
        with torch.profiler.profile(activities=activities) as profile:
            call()
            synchronise(device)
    except RuntimeError:  # the driver may keep its counters to itself
        return None
    found = sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())
    return found or None


def captured(call, device, times=1):
    """A replay of `times` calls from one CUDA graph; off a GPU just the calls."""
    if device.type != "cuda":
        return lambda: [call() for _ in range(times)]
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            call()
    return graph.replay
