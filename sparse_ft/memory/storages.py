"""Storages: which memory lies behind a tensor, and which tensors hang on an object."""

import functools
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .._torch import key_of, sparse_indices, sparse_values

_DEPTH = 12
_LEAVES = (
    str,
    bytes,
    int,
    float,
    complex,
    bool,
    type(None),
    torch.dtype,
    torch.device,
    torch.Size,
    type,
)


def storages_of(tensor: torch.Tensor) -> list[torch.UntypedStorage]:
    """The untyped storages that hold a tensor's data.

    One, or several for sparse tensors and wrappers such as DTensor.
    """
    if tensor.layout != torch.strided:
        return [storage for part in _sparse_parts(tensor) for storage in storages_of(part)]
    if hasattr(type(tensor), "__tensor_flatten__"):
        wrapper: Any = tensor
        names, _ = wrapper.__tensor_flatten__()
        return [storage for name in names for storage in storages_of(getattr(tensor, name))]
    return [tensor.untyped_storage()]


def _sparse_parts(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    if tensor.layout == torch.sparse_coo:
        return sparse_indices(tensor), sparse_values(tensor)
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return ()  # mkldnn: opaque


def model_storages(model: nn.Module) -> dict[int, torch.UntypedStorage]:
    """{key: storage} of all that a model holds anyway: parameters, buffers, and tensors in its
    modules' plain attributes.
    """
    found: dict[int, torch.UntypedStorage] = {}
    for module in model.modules():
        plain = {
            k: v
            for k, v in module.__dict__.items()
            if k not in ("_parameters", "_buffers", "_modules")
        }
        held = [*module._parameters.values(), *module._buffers.values(), *tensors_in(plain)]
        held += tensors_in([_beside(parameter) for parameter in module._parameters.values()])
        for tensor in held:
            if tensor is not None:
                found.update((key_of(s), s) for s in storages_of(tensor))
    return found


def _beside(parameter: Any) -> dict[str, Any]:
    """What a parameter of a library's own class keeps as attributes: scales of quantised codes."""
    kind = type(parameter)
    is_of_its_own = issubclass(kind, nn.Parameter) and kind is not nn.Parameter
    return vars(parameter) if is_of_its_own else {}


def tensors_in(thing: Any) -> list[torch.Tensor]:
    """The tensors that `thing` holds.

    Itself, in containers, in attributes of objects, in what functions close over.

    Modules are not entered: what they hold is the model's.
    """
    found: list[torch.Tensor] = []
    _collect(thing, found, set(), _DEPTH)
    return found


def _collect(thing: Any, found: list[torch.Tensor], seen: set[int], depth: int) -> None:
    if isinstance(thing, _LEAVES) or id(thing) in seen or depth == 0:
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        found.append(thing)
        return
    if isinstance(thing, torch.nn.Module):
        return
    for part in _parts(thing):
        _collect(part, found, seen, depth - 1)


def _parts(thing: Any) -> list[Any]:
    if isinstance(thing, Mapping):
        return list(thing.values())
    if isinstance(thing, (list, tuple, set, frozenset)):
        return list(thing)
    if isinstance(thing, functools.partial):
        return [thing.func, thing.args, thing.keywords]
    parts = []
    for cell in getattr(thing, "__closure__", None) or ():
        try:
            parts.append(cell.cell_contents)
        except ValueError:  # not filled yet
            pass
    if callable(thing) and hasattr(thing, "__self__"):
        parts.append(thing.__self__)
    if not isinstance(thing, type(torch)):
        parts += list((getattr(thing, "__dict__", None) or {}).values())
        for cls in type(thing).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            parts += [
                getattr(thing, n, None)
                for n in ((slots,) if isinstance(slots, str) else slots)
                if n != "__weakref__"
            ]
    return parts


class Watched:
    """Storages that were seen, without keeping them alive: {key: label}.

    The key of one that is gone is another's soon.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[weakref.ref, int, torch.device, str]] = {}

    def add(self, storage: torch.UntypedStorage, device: torch.device, label: str) -> None:
        """Note a storage under `label`; the first stays. device: its tensor's; without data the
        storage is on meta.
        """
        key = key_of(storage)
        known = self._seen.get(key)
        if known is not None and known[0]() is None:
            del self._seen[key]
            known = None
        if known is None:
            self._seen[key] = weakref.ref(storage), storage.nbytes(), device, label

    def alive(self) -> list[tuple[int, torch.device, str]]:
        """[(bytes, device, label)] of what still lives, in the order it was seen."""
        return [
            (size, device, label)
            for ref, size, device, label in self._seen.values()
            if ref() is not None
        ]
