"""Units: what `sft.units` found in a model."""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch

from ..messages import described
from ..plan import ALL, Plan
from ..selection import Blocks, Columns, Entries, Rows, Selection
from .unit import KINDS, Group, Part, Unit


class Shapes(NamedTuple):
    """stored: of the parameter. matrix: (rows, columns), of which selections speak."""

    stored: tuple[int, ...]
    matrix: tuple[int, int]


class Units:
    """The units of a model, by kind: `units["heads"]` is a list of `Unit`.

    groups: the same, a `Group` for each kind and site. undecided: {parameter name: why} of what
    could not be decided, which no head or channel has. shapes: {parameter name: Shapes}.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        shapes: Mapping[str, Shapes],
        undecided: Mapping[str, str] | None = None,
    ) -> None:
        self.groups = list(groups)
        self.shapes = dict(shapes)
        self.undecided = dict(undecided or {})

    @property
    def kinds(self) -> list[str]:
        """The kinds that there are."""
        there = {group.kind for group in self.groups}
        return [kind for kind in KINDS if kind in there]

    def of(self, kind: str) -> list[Group]:
        """The groups of one kind. Raises ValueError for an unknown kind."""
        if kind not in KINDS:
            raise ValueError(f"kind: expected {' or '.join(map(repr, KINDS))}, got {kind!r}")
        return [group for group in self.groups if group.kind == kind]

    def __getitem__(self, kind: str) -> list[Unit]:
        return list(self.iterate(kind))

    def iterate(self, kind: str) -> Iterator[Unit]:
        """The units of one kind, one after another: a large model has millions of neurons."""
        for group in self.of(kind):
            yield from group

    def plan(self, units: Iterable[Unit], targets: str | Iterable[str] = "*") -> Plan:
        """The plan that trains `units` whole, of the parameters that glob `targets` name.

        Rows where all that is chosen of a parameter are rows of its matrix, columns and blocks
        likewise, single entries where it is a mixture. Raises ValueError where nothing is left.
        """
        patterns = [targets] if isinstance(targets, str) else list(targets)
        parts: dict[str, list[Part]] = {}
        for unit in units:
            if not isinstance(unit, Unit):
                raise TypeError(f"units: expected a list of units, got {described(unit)} in it")
            for part in unit.parts:
                if any(fnmatch.fnmatchcase(part.parameter, pattern) for pattern in patterns):
                    parts.setdefault(part.parameter, []).append(part)
        if not parts:
            raise ValueError(f"units: none has a parameter that targets {patterns!r} match")
        names = [name for name in self.shapes if name in parts]
        return Plan({name: self.selection(name, parts[name]) for name in names})

    def selection(self, name: str, parts: Iterable[Part]) -> Selection | str:
        """What trains of parameter `name`, of which `parts` were chosen."""
        parts = list(parts)
        if any(part.dimension is None for part in parts):
            return ALL
        stored, matrix = self.shapes[name]
        if _are_panels(parts, stored):
            across = {(part.expert, column) for part in parts for column in part.index}
            return Blocks(sorted(across), (stored[1], 1)).on(matrix)
        mask = torch.zeros(stored, dtype=torch.bool, device="cpu")
        for part in parts:
            inner = mask if part.expert is None else mask[part.expert]
            dimension = (part.dimension or 0) - (part.expert is not None)
            inner.index_fill_(dimension, torch.tensor(part.index, device="cpu"), True)
        return selection_of(mask.view(matrix)).on(matrix)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        """One line a kind, and one for what could not be decided."""
        lines = []
        for kind in self.kinds:
            groups = self.of(kind)
            count = sum(group.count for group in groups)
            sites = "site" if len(groups) == 1 else "sites"
            lines.append(f"  {kind:20}  {count:,} at {len(groups):,} {sites}")
        for name, why in self.undecided.items():
            lines.append(f"  {name}  undecided: {why}")
        return "\n".join(["units", *lines])


def selection_of(mask: torch.Tensor) -> Selection:
    """The simplest selection of the entries that a bool matrix names."""
    rows, columns = mask.any(1), mask.any(0)
    chosen = int(mask.sum())
    if chosen == int(rows.sum()) * mask.size(1):
        return Rows(rows.nonzero().flatten())
    if chosen == int(columns.sum()) * mask.size(0):
        return Columns(columns.nonzero().flatten())
    return Entries(mask.flatten().nonzero().flatten())


def _are_panels(parts: list[Part], stored: tuple[int, ...]) -> bool:
    """Whether these are whole columns of single experts: blocks as high as an expert's matrix."""
    return len(stored) == 3 and all(
        part.expert is not None and part.dimension == 2 for part in parts
    )
