"""Selections: which entries of one weight train.

Rows, columns, blocks or single entries of its matrix [rows, columns]: `sparse_ft.structures`.
"""

import torch

from .structures import SELECTIONS, Selection
from .structures.blocks import Blocks, as_block_size
from .structures.columns import Columns
from .structures.entries import Entries
from .structures.index import INT32_MAX
from .structures.rows import Rows
from .structures.selection import rebuilt

__all__ = [
    "INT32_MAX",
    "Blocks",
    "Columns",
    "Entries",
    "Rows",
    "Selection",
    "as_block_size",
    "from_mask",
    "rebuilt",
]


def from_mask(
    mask: torch.Tensor, kind: str = "entries", block_size: int | tuple[int, int] | None = None
) -> Selection:
    """The selection whose mask is `mask`, a bool matrix [rows, columns].

    kind: "entries", "rows", "columns" or "blocks" (with block_size). Raises ValueError when a row,
    column or block is only partly True, naming the first such.
    """
    if isinstance(mask, torch.Tensor) and mask.is_nested:
        raise TypeError("mask: expected a bool tensor [rows, columns], got a nested tensor")
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.dim() != 2:
        got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, torch.Tensor) else repr(mask)
        raise TypeError(
            f"mask: expected a bool tensor [rows, columns], got {got}; try weight.ne(0)"
        )
    if kind not in SELECTIONS:
        raise ValueError(f"kind: expected 'entries', 'rows', 'columns' or 'blocks', got {kind!r}")
    selection = SELECTIONS[kind].of_mask(mask, block_size)
    partly = (selection.mask(mask.shape) != mask).nonzero()
    if len(partly):
        raise ValueError(
            f"mask: not made of whole {kind}: entry {tuple(partly[0].tolist())} is False where its"
            f" {kind[:-1]} has a True; use kind='entries'"
        )
    return selection.on(mask.shape)
