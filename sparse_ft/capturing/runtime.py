"""Runtime: the part of torch.cuda that records graphs and replays them."""

from collections.abc import Callable
from typing import Any

import torch


class Runtime:
    """Records on a stream of its own, where the warm-up runs, too."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def run(self, call: Callable[[], Any]) -> Any:
        """What `call()` returns, for the current stream."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = call()
        current.wait_stream(self._stream)
        return result

    def record(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """(a replay of `call`, what it returned): it is recorded, not run."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            result = call()
        return graph.replay, result


def runtime_of(device: torch.device) -> Any:
    """Who records on a device; None: nobody."""
    return Runtime(device) if device.type == "cuda" else None
