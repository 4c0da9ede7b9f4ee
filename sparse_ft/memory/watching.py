"""ledger: what autograd holds after a training forward, by module, in bytes."""

import bisect
import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from .._torch import (
    holds_nothing,
    hooks_in_force,
    is_compiling,
    is_newest,
    key_of,
    nodes_made,
    number_of,
)
from ..messages import check_module
from ..nn.foreign import refuse_split
from .graph import held_by, nodes_of
from .storages import Watched, model_storages, storages_of, tensors_in
from .table import Ledger, Row


def ledger(model: nn.Module, *inputs: Any, **kwargs: Any) -> Ledger:
    """Run `model(*inputs, **kwargs)` once as in training, and say what autograd holds for its
    backward. Returns a `Ledger`.

    Counted: unique storages, with their whole size, that are saved for backward or hang on the
    graph (`ctx` attributes, what `save_on_cpu` moved, a checkpoint's arguments). Not counted: what
    the model holds anyway (parameters, buffers), and outputs that are not saved. Each is booked
    once, under the innermost module whose forward ran when it was first saved. The model runs in
    the mode it is in (gradient checkpointing and dropout need `model.train()`); buffers, the random
    state and hooks are put back, also when the forward raises.
    """
    check_module("model", model)
    refuse_split("model", model)
    watched = Watching(model)
    try:
        with unchanged(model), watched, torch.enable_grad():
            outputs = model(*inputs, **kwargs)
        return watched.ledger(outputs, tokens_in(inputs, kwargs))
    finally:
        watched.release()


class _Packed:
    """A saved tensor.

    Not the tensor itself, so that `release` can undo a cycle of a node and what it saved.
    """

    __slots__ = ("tensor", "__weakref__")

    def __init__(self, tensor: torch.Tensor) -> None:
        # The very tensor: others tell tensors by identity. But an alias of the saving node's own
        # output, the newest of all: it would hold the node that holds it.
        node = tensor.grad_fn
        is_own = node is not None and is_newest(node)
        self.tensor: torch.Tensor | None = tensor.detach() if is_own else tensor


class Watching:
    """While entered, notes what is saved for backward, and under which module of `model`.

    `ledger(outputs)` sums it up; `release()` ends it, and the graph with it: no backward after
    that.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._kinds = {name: type(module).__name__ for name, module in model.named_modules()}
        self._own, self._seen, self._stack = model_storages(model), Watched(), [""]
        self._packed: weakref.WeakSet[_Packed] = weakref.WeakSet()
        # From this sequence number of autograd on, this module ran.
        self._when = [0]
        self._where = [""]

    def __enter__(self) -> "Watching":
        outer = hooks_in_force()  # hooks do not nest: ours goes through it
        with contextlib.ExitStack() as stack:
            for handle in (
                register_module_forward_pre_hook(self._before),
                register_module_forward_hook(self._after, always_call=True),
            ):
                stack.callback(handle.remove)
            stack.enter_context(saved_tensors_hooks(*self._hooks(outer)))
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._exit.__exit__(*error)

    def ledger(self, outputs: Any, tokens: int | None = None) -> Ledger:
        """The `Ledger` of what is held now by the graph behind `outputs`."""
        for node in nodes_of(outputs):
            for tensor in held_by(node):
                self._note(tensor, self._module_at(number_of(node)))
        sums: dict[tuple[str, str], tuple[int, int]] = {}
        for size, device, name in self._seen.alive():
            tensors, total = sums.get((name, str(device)), (0, 0))
            sums[name, str(device)] = tensors + 1, total + size
        order = {name: number for number, name in enumerate(self._kinds)}
        rows = [
            Row(name, self._kinds[name], device, *numbers)
            for (name, device), numbers in sums.items()
        ]
        return Ledger(sorted(rows, key=lambda row: (order[row.module], row.device)), tokens)

    def release(self) -> None:
        for packed in self._packed:
            packed.tensor = None

    def _hooks(
        self, outer: Any
    ) -> tuple[Callable[[torch.Tensor], Any], Callable[[Any], torch.Tensor]]:
        if not isinstance(outer, tuple):  # none, or it is not known whose
            return self._pack, lambda packed: packed.tensor

        def pack(tensor: torch.Tensor) -> Any:
            packed = outer[0](tensor)
            for held in tensors_in(packed):
                self._note(held, self._stack[-1])
            return packed

        return pack, outer[1]

    def _pack(self, tensor: torch.Tensor) -> _Packed:
        self._note(tensor, self._stack[-1])
        packed = _Packed(tensor)
        self._packed.add(packed)
        return packed

    def _note(self, tensor: torch.Tensor, name: str) -> None:
        for storage in storages_of(tensor):
            if key_of(storage) not in self._own:
                self._seen.add(storage, tensor.device, name)

    def _before(self, module: nn.Module, _: Any) -> None:
        if not is_compiling():  # a compiled region is one module's
            self._stack.append(self._names.get(id(module), self._stack[-1]))
            self._note_place()

    @holds_nothing
    def _after(self, *_: Any) -> None:
        if is_compiling():
            return
        if len(self._stack) > 1:
            self._stack.pop()
        self._note_place()

    def _note_place(self) -> None:
        """From here on nodes are those of the module on top of the stack."""
        self._when.append(nodes_made())
        self._where.append(self._stack[-1])

    def _module_at(self, sequence_number: int) -> str:
        return self._where[max(bisect.bisect_right(self._when, sequence_number) - 1, 0)]


def tokens_in(inputs: Iterable[Any], kwargs: Mapping[str, Any]) -> int | None:
    """Tokens of a batch, as the shape of its first integer matrix tells (`input_ids`).

    None where there is none.
    """
    ids = [kwargs.get("input_ids"), *tensors_in([*inputs, kwargs])]
    for tensor in ids:
        if tensor is None or tensor.dim() != 2 or tensor.dtype == torch.bool:
            continue
        if not tensor.is_floating_point():
            return tensor.numel()
    return None


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put back what a forward writes: buffers (running statistics) and the random state."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        try:
            yield
        finally:
            with torch.no_grad():
                for module, name, buffer, copy in buffers:
                    module._buffers[name] = buffer
                    # Batch normalisation leaves no trace in the version.
                    if not torch.equal(buffer, copy):
                        buffer.copy_(copy)
