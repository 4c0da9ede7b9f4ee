"""Delta: what fine-tuning changed in a model, as the new values of the entries that trained."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..plan import ALL, Plan
from . import places
from .making import buffers_of, name_of, part_of
from .part import Part
from .rest import rest_of


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
        parts = {each.name: part_of(each) for each in places.trained(model)}
        for name, buffer in buffers_of(model):
            parts[name] = Part.whole(buffer.detach().clone(), reader=places.BUFFER)
        base = base_name if base_name is not None else name_of(model)
        return cls(parts, rest_of(model, parts), base, recipe)

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
