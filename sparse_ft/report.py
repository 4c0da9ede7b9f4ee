"""Report: what trains in a model and how, as rows and as a printed table."""

from typing import NamedTuple


class Row(NamedTuple):
    """One parameter. total, trainable: entries; structure: "rows" … "entries", "all" or ""; how: what serves it, or why not."""

    name: str
    shape: tuple
    total: int
    trainable: int
    structure: str
    how: str


class Report:
    """What `convert` did and `summary` sees: `.rows`, `.trainable`, `.total`, `.transient` and `.frozen`; prints as a table."""

    def __init__(self, rows):
        self.rows = tuple(rows)
        self.total = sum(row.total for row in rows)
        self.trainable = sum(row.trainable for row in rows)

    @property
    def replaced(self):
        """Names of the weights whose module is a selective one."""
        return [row.name for row in self.rows if row.how.startswith("Selective")]

    @property
    def transient(self):
        """Names of the selected parameters whose dense gradient exists for a moment."""
        return [row.name for row in self.rows if row.how.startswith("alias")]

    @property
    def frozen(self):
        """Names of the parameters that do not train."""
        return [row.name for row in self.rows if not row.trainable]

    def __str__(self):
        lines = [("parameter", "shape", "trainable", "of", "share", "structure", "how")]
        for row in self.rows:
            if row.trainable:
                lines.append(
                    (
                        row.name,
                        "×".join(map(str, row.shape)),
                        f"{row.trainable:,}",
                        f"{row.total:,}",
                        f"{row.trainable / row.total:.2%}",
                        row.structure,
                        row.how,
                    )
                )
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        numbers = (2, 3, 4)
        table = [
            "  ".join(
                cell.rjust(w) if i in numbers else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths))
            ).rstrip()
            for line in lines
        ]
        share = self.trainable / self.total if self.total else 0
        frozen = self.frozen
        return "\n".join(
            [
                *table,
                f"trainable {self.trainable:,} of {self.total:,} ({share:.3%}); "
                f"{len(frozen)} parameters frozen ({sum(r.total for r in self.rows if not r.trainable):,} entries)",
            ]
        )

    __repr__ = __str__
