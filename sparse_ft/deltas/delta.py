"""Delta: what fine-tuning changed in a model, as the new values of the entries that trained."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..nn import origin_of
from ..plan import ALL, Plan
from ..selection import Entries, Selection
from . import places
from .fingerprint import fingerprint, written
from .rest import rest_of, rest_of_matrix


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """What changed in one tensor.

    values: the new numbers themselves, in the dtype of the tensor, shaped by the selection (see
    `sparse_ft.ops.layout`), or as the tensor where it changed whole (selection None). A difference
    would not be exact: base + bf16(new - base) misses 4 % of entries.
    shape: of the tensor; matrix_shape: of the matrix that the selection speaks of.
    origin: what the base holds there, shaped as values; None where it is not known.
    rest: fingerprint of the base's other entries, 16 hexadecimal digits; "" where there are none.
    reader: "linear", "conv1d" (stored [in, out]), "embedding", "other" or "buffer": adapter formats
    ask.
    """

    selection: Selection | None
    values: torch.Tensor
    shape: tuple[int, ...]
    matrix_shape: tuple[int, int]
    origin: torch.Tensor | None = None
    rest: str = ""
    reader: str = places.OTHER

    @property
    def entries(self) -> int:
        """How many entries of the tensor it holds."""
        if self.selection is None:
            return self.values.numel()
        return self.selection.nnz(self.matrix_shape)

    def with_values(self, values: torch.Tensor) -> "Part":
        """This part with other new values."""
        return dataclasses.replace(self, values=values)

    def to(self, device: torch.device | str) -> "Part":
        """This part on `device`."""
        return dataclasses.replace(
            self,
            selection=None if self.selection is None else self.selection.to(device),
            values=self.values.to(device),
            origin=None if self.origin is None else self.origin.to(device),
        )


class Delta(Mapping):
    """What fine-tuning changed: `{name of a tensor: Part}`, as in `model.state_dict()`. Immutable.

    `sft.save_delta` and `sft.load_delta` keep it, `sft.apply` and `sft.remove` put it into a base
    model and take it out again, both bit for bit.

    rest: fingerprint of the base's tensors that it does not touch; None where nothing is known of
    the base. base_name, recipe: what the file says of both, None or any JSON.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        rest: str | None = None,
        base_name: str | None = None,
        recipe: Any = None,
    ):
        self._parts = dict(parts)
        self.rest = rest
        self.base_name = base_name
        self.recipe = recipe

    @classmethod
    def of(cls, model: nn.Module, base_name: str | None = None, recipe: Any = None) -> "Delta":
        """What trained in `model`, which `sft.convert` has converted: a copy, on its devices.

        Its base is the model as it was when it was converted, which it knows by what has not
        trained; where `convert` kept the origin of the selected entries, it has that too.
        Persistent buffers come along whole (running statistics drift where nothing else trains).
        Raises ValueError for a model that is not converted.
        """
        parts = {each.name: _part_of(each) for each in places.trained(model)}
        for name, buffer in _buffers(model):
            shape = tuple(buffer.shape)
            copied = buffer.detach().clone()
            parts[name] = Part(None, copied, shape, (1, buffer.numel()), reader=places.BUFFER)
        name = base_name if base_name is not None else name_of(model)
        return cls(parts, rest_of(model, parts), name, recipe)

    def __getitem__(self, name: str) -> Part:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __deepcopy__(self, memo: dict) -> "Delta":
        return self  # nothing changes it

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    @property
    def plan(self) -> Plan:
        """What trained, as a plan: `sft.convert(model, delta.plan)` goes on where it ended."""
        trained = {name: part for name, part in self.items() if part.reader != places.BUFFER}
        return Plan({name: part.selection or ALL for name, part in trained.items()})

    @property
    def entries(self) -> int:
        """How many entries it changes."""
        return sum(part.entries for part in self.values())

    @property
    def has_origin(self) -> bool:
        """Whether it knows what the base holds at all entries that trained (buffers aside)."""
        return all(
            part.origin is not None or part.reader == places.BUFFER for part in self.values()
        )

    def with_parts(self, parts: Mapping[str, Part]) -> "Delta":
        """This delta with other parts, of the same base."""
        return Delta(parts, self.rest, self.base_name, self.recipe)

    def to(self, device: torch.device | str) -> "Delta":
        """This delta on `device`."""
        return self.with_parts({name: part.to(device) for name, part in self.items()})

    def __str__(self) -> str:
        of = f" of {self.base_name}" if self.base_name else ""
        known = "; its base's entries are known" if self and self.has_origin else ""
        return f"a delta{of}: {self.entries:,} entries{known}\n{self.plan}"

    def __repr__(self) -> str:
        return f"Delta({len(self)} tensors, {self.entries:,} entries)"


def _part_of(each: places.Trained) -> Part:
    shape = tuple(each.weight.shape)
    if each.selection is None:
        values, origin = each.weight.clone(), kept_origin(each)
        return Part(None, values, shape, each.matrix_shape, origin, reader=each.reader)
    matrix = each.weight.view(each.matrix_shape)
    selection, origin = ever_selected(each)
    values = places.gathered(matrix, selection)
    rest = written(rest_of_matrix(matrix, selection, values, fingerprint(matrix)))
    return Part(selection, values, shape, each.matrix_shape, origin, rest, each.reader)


def ever_selected(each: places.Trained) -> tuple[Selection, torch.Tensor | None]:
    """All entries of a tensor that have trained, and what the base holds there, where that is kept.

    Those of its selection, and, as single entries, those that a reselection has dropped and left as
    they were.
    """
    selection, origin, left = each.selection, kept_origin(each), each.left
    if left is None:
        return selection.on(each.matrix_shape), origin
    now = places.positions_of(selection, each.matrix_shape)
    every = torch.cat([now[now >= 0], left.positions.to(now.device)])
    order = every.argsort()
    known = None
    if origin is not None and left.origin is not None:
        dropped = left.origin.to(origin)
        known = torch.cat([origin.reshape(-1)[now >= 0], dropped])[order]
    return Entries(every[order]).on(each.matrix_shape), known


def kept_origin(each: places.Trained) -> torch.Tensor | None:
    """What the base holds at the entries that train, in the dtype of the weight, where
    `sft.convert(..., origin=True)` has kept it.
    """
    origin = origin_of(each.parameter)
    return None if origin is None else origin.detach().to(each.weight.dtype, copy=True)


def _buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The persistent buffers of a model, by the names that a state_dict gives them."""
    kept = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in kept:
            yield name, buffer


def name_of(model: nn.Module) -> str | None:
    """What a Hugging Face model was loaded from."""
    name = getattr(getattr(model, "config", None), "name_or_path", None)
    return name if isinstance(name, str) and name else None
