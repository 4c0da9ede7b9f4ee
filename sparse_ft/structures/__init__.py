"""The structures: which entries of a matrix may be selected together, one file each.

A file holds all that depends on the kind: the public `Selection`, how its values are laid out
(`ops.layout.Structure`), and the weight gradient in plain PyTorch.
"""

from ..ops.layout import STRUCTURES
from .blocks import Blocks
from .columns import Columns
from .entries import Entries
from .rows import Rows
from .selection import Selection

SELECTIONS: dict[str, type[Selection]] = {}


def register(selection: type[Selection]) -> None:
    """Let ops, plans and `sft.from_mask` know a structure by its kind."""
    STRUCTURES[selection.kind] = SELECTIONS[selection.kind] = selection


register(Rows)
register(Columns)
register(Blocks)
register(Entries)

__all__ = ["SELECTIONS", "Blocks", "Columns", "Entries", "Rows", "Selection", "register"]
