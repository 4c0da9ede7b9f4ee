"""CUDA graphs as far as a CPU can be one: what is recorded is not run, and a replay runs the same
operators on the same memory, behind Python's back.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_ft.trees import leaves, map_leaves

READS = torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default


def behind(tree: Any) -> Any:
    """The same memory in tensors whose versions nobody knows."""
    return map_leaves(lambda leaf: leaf.data if isinstance(leaf, torch.Tensor) else leaf, tree)


class Recording(TorchDispatchMode):
    """Notes every operator, and what was in the memory that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function in READS:
            raise RuntimeError("operation not permitted when stream is capturing")
        given = args, kwargs or {}
        for leaf in leaves(given):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        result = function(*args, **given[1])
        self.calls.append((function, behind(given), behind(result)))
        return result

    def put_back(self) -> None:
        """As if none of it had been run."""
        for storage, before in self._before.values():
            storage.copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        for function, (args, kwargs), result in self.calls:
            found = function(*args, **kwargs)
            for old, new in zip(leaves(result), leaves(found)):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Runtime:
    """In the place of `sparse_ft.capturing.runtime.Runtime`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def run(self, call: Callable[[], Any]) -> Any:
        return call()

    def record(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        recording = Recording()
        try:
            with recording:
                result = call()
        finally:
            recording.put_back()
        return recording.replay, result
