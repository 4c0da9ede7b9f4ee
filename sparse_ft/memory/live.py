"""Live: bytes of the tensors that are alive, and the most there were at once."""

import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch

from .._torch import TorchDispatchMode, key_of
from ..trees import leaves
from .storages import storages_of


class Live(TorchDispatchMode):
    """While entered, follows every storage that an op makes, to its end.

    `.bytes` alive now, `.peak` the most at once.

    `follow(storage)` counts one that was there before. What kernels allocate and free inside of an
    op is not seen.
    """

    holds_nothing = True  # of the outputs that it sees: a lean layer may write over them

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        # {key: (weak reference to the storage, its size)}
        self._alive: dict[int, tuple[weakref.ref, int]] = {}

    def __torch_dispatch__(
        self,
        func: Callable,
        types: Iterable[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in (out,) if isinstance(out, torch.Tensor) else leaves(out):
            if isinstance(tensor, torch.Tensor):
                for storage in storages_of(tensor):
                    self.follow(storage)
        return out

    def follow(self, storage: torch.UntypedStorage) -> None:
        key, size = key_of(storage), storage.nbytes()
        ref, known = self._alive.get(key, (None, 0))
        if ref is None:
            ref = weakref.ref(storage, functools.partial(self._free, key))
        if size != known:  # new, or resized
            self._alive[key] = ref, size
            self.bytes += size - known
        self.peak = max(self.peak, self.bytes)

    def since(self) -> int:
        """The highest level since the last call (or the beginning)."""
        peak, self.peak = self.peak, self.bytes
        return peak

    def _free(self, key: int, _: weakref.ref) -> None:
        self.bytes -= self._alive.pop(key)[1]
