"""Time and memory of calls on a device.

Events around replays on a GPU, the clock of the host elsewhere, so that all of it runs on a CPU.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from bench import memory
from bench.harness import interleave
from bench.stats import Times

# Bytes read before each sample: many times the cache, so that nothing of the operands is in it, and
# longer than the host takes to launch what follows. Read, not written: what was written goes back
# to memory later, at the cost of whoever runs then.
FLUSH = 1 << 30
WARM_UP = 3  # calls before one is captured: compilations, workspaces, tables


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Events:
    """A sample between two events; the cache is cold and the launch queue full when it starts."""

    def __init__(self, device: torch.device):
        self.scratch = torch.zeros(FLUSH // 4, dtype=torch.int32, device=device)

    def flush(self) -> None:
        self.scratch.amax()

    def __call__(
        self, call: Callable[[], object], repeats: int, clock: Callable[[], float]
    ) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush()
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


Variants = Mapping[str, Callable[[], object]]


def rounds(
    variants: Variants, device: torch.device, seconds: float, **limits: Any
) -> dict[str, dict[int, float]]:
    """`harness.interleave` on a device: {name: {round: seconds}}. On a GPU each sample is one
    call.
    """
    if device.type == "cuda":
        on_gpu = {"warm_up": WARM_UP, "most": 200, "timer": Events(device), "shortest": 0.0}
        limits = on_gpu | limits
    return interleave(variants, seconds, **limits)


def replays(variants: Variants, device: torch.device) -> tuple[Variants, list[str]]:
    """The calls as replays of a graph each, so that what the host takes to launch them is no part
    of their time; and the names of those that cannot be captured, which stay as they are.

    Elsewhere than on a GPU there is nothing to capture.
    """
    if device.type != "cuda":
        return variants, []
    found: dict[str, Callable[[], object]] = {}
    eager = []
    for name, call in variants.items():
        try:
            found[name] = captured(call, device)
        except RuntimeError:
            synchronise(device)
            found[name] = call
            eager.append(name)
    return found, eager


def compare(
    variants: Variants, device: torch.device, seconds: float, **limits: Any
) -> dict[str, Times]:
    """{name: Times} of {name: callable}, in turns, for about `seconds` in all."""
    found = rounds(variants, device, seconds, **limits)
    return {name: Times.of(samples.values()) for name, samples in found.items()}


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
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


def count_launches(call: Callable[[], object], device: torch.device) -> int | None:
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


def captured(
    call: Callable[[], object], device: torch.device, times: int = 1
) -> Callable[[], object]:
    """A replay of `times` calls from one CUDA graph; off a GPU just the calls."""
    if device.type != "cuda":
        return lambda: [call() for _ in range(times)]
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            call()
    return graph.replay
