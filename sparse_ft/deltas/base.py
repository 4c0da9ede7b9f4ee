"""Whether a model is the base that a delta was made for."""

import dataclasses
import weakref
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from . import places
from .delta import Delta
from .exchange import tensor_of
from .fingerprint import bits_of, fingerprint, written
from .over_codes import codes_differ, dense_of
from .part import Part
from .rest import rest_of, rest_of_matrix


class Seen(NamedTuple):
    """What a tensor was like when its fingerprint was taken.

    storage: weakly; a new tensor may get the address of one that is gone.
    """

    version: int
    address: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    storage: weakref.ref

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Seen":
        version = 0 if tensor.is_inference() else tensor._version
        storage = weakref.ref(tensor.untyped_storage())
        return cls(version, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), storage)


class Known:
    """Fingerprints of the base's parameters, each taken once.

    A switch of deltas is to cost what they change, not what the model holds.

    One is taken anew when its parameter was written or replaced by anybody but `sft.apply` and
    `sft.remove`; a bare write through `.data` leaves no trace, here as elsewhere.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, tuple[Seen, int]] = {}
        self._taken = 0  # how many fingerprints were taken
        self._fitting: weakref.WeakKeyDictionary[Delta, int] = weakref.WeakKeyDictionary()

    def __reduce__(self) -> tuple[type, tuple]:
        return Known, ()  # a copy of the model has tensors of its own

    def fits(self, model: nn.Module, delta: Delta) -> bool:
        """Whether `model` was found to be the base of `delta`, and no parameter has changed since.

        It shows its base now.
        """
        if delta not in self._fitting:
            return False
        for name, parameter in model.named_parameters():
            self.of(name, parameter)
        return self._fitting[delta] == self._taken

    def remember(self, model: nn.Module, delta: Delta) -> None:
        """`model`, which is its base, has been found to be that of `delta`."""
        for name, parameter in model.named_parameters():
            self.of(name, parameter)
        self._fitting[delta] = self._taken

    def of(self, name: str, tensor: torch.Tensor) -> int:
        """The fingerprint of `tensor`, which is the base's, called `name`."""
        seen = Seen.of(tensor)
        before = self._numbers.get(name)
        if before is None or before[0] != seen:
            self._taken += 1
            before = self._numbers[name] = seen, fingerprint(tensor)
        return before[1]

    def valid(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
        """The names whose fingerprint is still that of their tensor."""
        names = []
        for name, tensor in tensors:
            before = self._numbers.get(name)
            if before is not None and before[0] == Seen.of(tensor):
                names.append(name)
        return names

    def restamp(self, name: str, tensor: torch.Tensor) -> None:
        """The fingerprint of `name` still counts, after a write that will be taken back."""
        self._numbers[name] = Seen.of(tensor), self._numbers[name][1]


def differences(model: nn.Module, delta: Delta, known: Known) -> list[str]:
    """Where `model` is not the base of `delta`, in words; empty where it is. Looks only."""
    wrong = []
    for name, part in delta.items():
        why = _difference(model, name, part, known)
        if why is not None:
            wrong.append(f"{name!r} {why}")
    if delta.rest is not None and rest_of(model, delta, known.of) != delta.rest:
        wrong.append("what the delta leaves alone has other numbers, names or shapes")
    return wrong


def _difference(model: nn.Module, name: str, part: Part, known: Known) -> str | None:
    layer = places.layer_of(model, name)
    if layer is not None:
        return codes_differ(layer, part)
    tensor = places.tensor_of(*places.owner_of(model, name)).detach()
    if tensor.dtype != part.values.dtype:
        return f"is {tensor.dtype}, and the delta's are {part.values.dtype}"
    if part.selection is None:
        return None if _is_origin(tensor, part) else "does not hold what its base did"
    matrix = tensor.view(part.matrix_shape)
    values = places.gathered(matrix, part.selection)
    if not _is_origin(values, part):
        return "does not hold what its base did where the delta changes it"
    whole = known.of(name, tensor)
    rest = written(rest_of_matrix(matrix, part.selection, values, whole))
    return None if part.rest in ("", rest) else "has other numbers where the delta changes nothing"


def _is_origin(values: torch.Tensor, part: Part) -> bool:
    if part.origin is None:
        return True
    origin = part.origin.to(values.device)
    return origin.dtype == values.dtype and torch.equal(bits_of(values), bits_of(origin))


def refuse(delta: Delta, wrong: list[str]) -> None:
    """Raise ValueError for a model that is not the base of `delta`."""
    of = f" ({delta.base_name!r})" if delta.base_name else ""
    more = f" and {len(wrong) - 2} more" if len(wrong) > 2 else ""
    raise ValueError(
        f"model: it is not the base that this delta was made for{of}: {'; '.join(wrong[:2])}{more}."
        " Load that base, take out what was put in before, or force=True to put the values in all"
        " the same"
    )


def on_base(delta: Delta, base: nn.Module, force: bool = False) -> Delta:
    """`delta` with what `base` holds at its entries, its `origin`.

    Interpolation, merging and LoRA calculate with it.

    base: the model that it was made for, without it. force: do not look whether it is. Raises
    ValueError for another one.
    """
    wrong = [] if force else differences(base, delta, Known())
    if wrong:
        refuse(delta, wrong)
    parts = {}
    for name, part in delta.items():
        origin = base_values(base, name, part)
        parts[name] = dataclasses.replace(part, origin=origin.to(part.values, copy=True))
    return delta.with_parts(parts)


def base_values(model: nn.Module, name: str, part: Part) -> torch.Tensor:
    """What the tensor `name` of a model holds at the entries of `part`, shaped as its values."""
    tensor = tensor_of(model, name, part).detach()
    layer = places.layer_of(model, name)
    if layer is not None:
        tensor = dense_of(layer)
    if part.selection is None:
        return tensor
    return places.gathered(tensor.view(part.matrix_shape), part.selection)
