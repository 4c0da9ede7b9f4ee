"""Joining: what several probes say of the features of parameters, put together."""

from typing import NamedTuple

import torch

from .parting import NONE, SEVERAL

DROPPED = -3  # as a component: it reaches what falls into no parts


class Key(NamedTuple):
    """Features of a parameter along a dimension. expert: see `Product`.

    takes: whether it is read along that dimension.
    """

    parameter: str
    dimension: int
    expert: int | None
    takes: bool


class Joint:
    """Features, numbered; and the parts that probes found, which join them to components."""

    def __init__(self) -> None:
        self.sizes: dict[Key, int] = {}
        self._first: dict[Key, int] = {}
        self._count = 0
        self._edges: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._dropped: list[torch.Tensor] = []
        self._loose: dict[Key, list[tuple[int, torch.Tensor]]] = {}

    def nodes(self, key: Key, size: int) -> torch.Tensor:
        """int64 [size]: the numbers of a parameter's features."""
        if key not in self.sizes:
            self.sizes[key] = size
            self._first[key] = self._new(size)
        return self._first[key] + torch.arange(size, device="cpu")

    def part(self, count: int) -> int:
        """The first of `count` new numbers, for the parts of one input."""
        return self._new(count)

    def tie(self, key: Key, labels: torch.Tensor, first: int) -> None:
        """The features of `key` belong to the parts `first` + `labels`; those of SEVERAL drop."""
        nodes = self.nodes(key, len(labels))
        known = labels >= 0
        self._edges.append((nodes[known], first + labels[known]))
        self._dropped.append(nodes[labels == SEVERAL])

    def note(self, key: Key, labels: torch.Tensor, first: int) -> None:
        """The same of features that tie nothing together: they belong where all notes agree."""
        self._loose.setdefault(key, []).append((first, labels))

    def drop(self, nodes: torch.Tensor) -> None:
        """These are read by what falls into no parts, and all that is tied to them."""
        self._dropped.append(nodes)

    def components(self) -> dict[Key, torch.Tensor]:
        """{key: int64 [size], the component of each feature, DROPPED or NONE where in none}."""
        component = self._connected()
        touched = torch.zeros(self._count, dtype=torch.bool, device="cpu")
        for a, b in self._edges:
            touched[a] = touched[b] = True
        if self._dropped:
            gone = torch.cat(self._dropped)
            touched[gone] = True
            component[torch.isin(component, component[gone])] = DROPPED
        component[~touched] = NONE
        found = {}
        for key, first in self._first.items():
            found[key] = component[first : first + self.sizes[key]]
        for key, notes in self._loose.items():
            found[key] = _agreed(notes, component)
        return found

    def _new(self, count: int) -> int:
        first = self._count
        self._count += count
        return first

    def _connected(self) -> torch.Tensor:
        """The smallest number that each is connected with."""
        smallest = torch.arange(self._count, device="cpu")
        if not self._edges:
            return smallest
        a, b = (torch.cat(ends) for ends in zip(*self._edges))
        while True:
            before = smallest.clone()
            least = torch.minimum(smallest[a], smallest[b])
            smallest.scatter_reduce_(0, a, least, "amin")
            smallest.scatter_reduce_(0, b, least, "amin")
            smallest = smallest[smallest]
            if torch.equal(smallest, before):
                return smallest


def _agreed(notes: list[tuple[int, torch.Tensor]], component: torch.Tensor) -> torch.Tensor:
    """The component that all notes give, where there is one."""
    least = torch.full_like(notes[0][1], torch.iinfo(torch.int64).max)
    most = torch.full_like(notes[0][1], NONE)
    for first, labels in notes:
        known = labels >= 0
        mine = torch.full_like(labels, NONE)
        mine[known] = component[first + labels[known]]
        mine[labels == SEVERAL] = DROPPED - 1
        said = labels != NONE
        least = torch.where(said, torch.minimum(least, mine), least)
        most = torch.where(said, torch.maximum(most, mine), most)
    return torch.where((least == most) & (most >= 0), most, torch.full_like(most, NONE))
