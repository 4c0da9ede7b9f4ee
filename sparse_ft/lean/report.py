"""LeanReport: what `lean` changed, and what it left and why."""

from collections import Counter
from typing import NamedTuple


class LeanRow(NamedTuple):
    """One module. lean: whether it runs a lean forward; why: if not, what prevents it."""

    name: str
    cls: str
    lean: bool
    why: str


class LeanReport:
    """`.rows`, `.changed` and `.left` (names), `.attention` (whether padded attention is lean); prints as a table by class."""

    def __init__(self, rows, attention):
        self.rows, self.attention = tuple(rows), attention

    @property
    def changed(self):
        return [row.name for row in self.rows if row.lean]

    @property
    def left(self):
        return [row.name for row in self.rows if not row.lean]

    def __str__(self):
        groups = Counter((row.cls, row.lean, row.why) for row in self.rows)
        lines = [
            f"{count:5d} × {cls:30s} {'lean' if is_lean else 'left: ' + why}" for (cls, is_lean, why), count in groups.items()
        ]
        if self.attention:
            lines.append("        attention                      lean with a padded batch, too")
        return "\n".join([*lines, f"{len(self.changed)} modules are lean, {len(self.left)} are left"])

    __repr__ = __str__
