"""Report: what trains in a model and how, as rows and as a printed table."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from .families import families
from .texts import aligned, readable


class Row(NamedTuple):
    """One parameter. total, trainable: entries; structure: "rows" … "entries", "all" or ""; how:
    what serves it, or why not.
    """

    name: str
    shape: tuple
    total: int
    trainable: int
    structure: str
    how: str


class Report:
    """What `convert` did and `summary` sees: `.rows`, `.trainable`, `.total`, `.transient` and
    `.frozen`.

    Prints as a table in which layers that differ in their number only share a line; `.rows` has
    each parameter by itself. `.lean`: the `LeanReport` of `convert(lean=True)`, else None. `.lost`:
    names of selections whose module was replaced since. `.origin`: bytes of the pretrained values
    that `convert(origin=True)` keeps.
    """

    def __init__(
        self, rows: Iterable[Row], lean: Any = None, lost: Iterable[str] = (), origin: int = 0
    ) -> None:
        self.rows = tuple(rows)
        self.lean = lean
        self.lost = tuple(lost)
        self.origin = origin
        self.total = sum(row.total for row in self.rows)
        self.trainable = sum(row.trainable for row in self.rows)

    @property
    def replaced(self) -> list[str]:
        """Names of the weights whose module is a selective one."""
        return [row.name for row in self.rows if row.how.startswith("Selective")]

    @property
    def transient(self) -> list[str]:
        """Names of the selected parameters whose dense gradient exists for a moment."""
        return [row.name for row in self.rows if row.how.startswith("alias")]

    @property
    def frozen(self) -> list[str]:
        """Names of the parameters that do not train."""
        return [row.name for row in self.rows if not row.trainable]

    def __str__(self) -> str:
        lines = [
            ("parameter", "shape", "trainable", "of", "share", "structure", "how"),
            *self._lines(),
        ]
        share = self.trainable / self.total if self.total else 0
        frozen = self.frozen
        end = [
            f"trainable {self.trainable:,} of {self.total:,} ({share:.3%}); {len(frozen)}"
            f" parameters frozen ({sum(r.total for r in self.rows if not r.trainable):,} entries)"
        ]
        for name in self.lost:
            end.append(
                f"LOST: the selection of {name!r}; its module was replaced after sft.convert"
            )
        if self.origin:
            end.append(f"their pretrained values are kept: {readable(self.origin)}")
        if self.lean is not None:
            end.append(self.lean.brief())
        return "\n".join([*aligned(lines, numbers=(2, 3, 4)), *end])

    def _lines(self) -> list[tuple[str, ...]]:
        """The cells of the table: a line for all layers of one shape, structure and way of
        training.
        """
        trained = {row.name: row for row in self.rows if row.trainable}
        lines: list[tuple[str, ...]] = []
        for family in families(
            (name, (row.shape, row.structure, row.how)) for name, row in trained.items()
        ):
            members = [trained[name] for name in family.names]
            first = members[0]
            trainable = sum(row.trainable for row in members)
            total = sum(row.total for row in members)
            shape = "×".join(map(str, first.shape))
            numbers = f"{trainable:,}", f"{total:,}", f"{trainable / total:.2%}"
            lines.append((family.label, shape, *numbers, first.structure, first.how))
        return lines

    __repr__ = __str__
