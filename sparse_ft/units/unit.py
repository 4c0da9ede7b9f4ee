"""Unit: entries of several parameters that must be chosen together, such as a head."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import torch

KINDS = (
    "heads",
    "query_heads",
    "channels",
    "convolution_channels",
    "experts",
    "layers",
    "neurons",
    "embedding_rows",
)


class Part(NamedTuple):
    """What a unit has of one parameter: the entries with one of `index` along `dimension`.

    parameter: dotted name. dimension: of the stored tensor; None: the whole parameter.
    index: ascending, along that dimension. expert: where one parameter holds all experts, the
    number in dimension 0 that it is confined to; None: no such bound. takes: whether the unit
    is read by these entries (the columns of the next weight) rather than made by them.
    """

    parameter: str
    dimension: int | None
    index: tuple[int, ...] = ()  # type: ignore[assignment]  # not tuple's method
    expert: int | None = None
    takes: bool = False


class Unit(NamedTuple):
    """One head, query head, channel, expert, layer, neuron or embedding row.

    kind: one of `KINDS`. site: where in the model, as a dotted name. number: which of its
    site's units. parts: what it has of each parameter.
    """

    kind: str
    site: str
    number: int
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """ "model.layers.0.self_attn/heads/2"."""
        return f"{self.site}/{self.kind}/{self.number}"

    @property
    def makes(self) -> tuple[Part, ...]:
        """Parts that make the unit's features: rows of q, k and v, of gate and up."""
        return tuple(part for part in self.parts if not part.takes)

    @property
    def takes(self) -> tuple[Part, ...]:
        """Parts that read the unit's features: columns of o, of down."""
        return tuple(part for part in self.parts if part.takes)


@dataclasses.dataclass(frozen=True)
class Share:
    """What all units of a group have of one parameter.

    index, owner: int64 [n]: entry `index[i]` along `dimension` is of unit `owner[i]`, ascending
    by owner, then by index. The other fields: see `Part`.
    """

    parameter: str
    dimension: int | None
    index: torch.Tensor
    owner: torch.Tensor
    expert: int | None = None
    takes: bool = False

    def part(self, number: int) -> Part | None:
        """What unit `number` has of it; None where that is nothing."""
        ends = torch.searchsorted(
            self.owner, torch.tensor([number, number + 1], device="cpu")
        ).tolist()
        mine = self.index[slice(*ends)]
        if not len(mine):
            return None
        index = () if self.dimension is None else tuple(mine.tolist())
        return Part(self.parameter, self.dimension, index, self.expert, self.takes)


@dataclasses.dataclass(frozen=True)
class Group:
    """All units of one kind at one site. count: how many there are."""

    kind: str
    site: str
    count: int
    shares: tuple[Share, ...]

    def unit(self, number: int) -> Unit:
        """Unit `number` of this group."""
        parts = (share.part(number) for share in self.shares)
        return Unit(self.kind, self.site, number, tuple(part for part in parts if part))

    def __iter__(self) -> Iterator[Unit]:
        return map(self.unit, range(self.count))


def whole(parameter: str, number: int = 0) -> Share:
    """All of a parameter, as what unit `number` has."""
    return Share(
        parameter,
        None,
        torch.zeros(1, dtype=torch.int64, device="cpu"),
        torch.tensor([number], device="cpu"),
    )


def along(parameter: str, dimension: int, size: int) -> Share:
    """One entry along `dimension` for each of `size` units."""
    every = torch.arange(size, device="cpu")
    return Share(parameter, dimension, every, every)
