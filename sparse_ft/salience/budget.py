"""Budgets: from a score [rows, columns] and a density to the selection of the best rows, columns,
blocks or entries.
"""

import torch

from ..selection import Blocks, Columns, Entries, Rows

STRUCTURES = ("rows", "columns", "blocks", "entries", "entries_per_row")


def top(score, density, structure, block_size=None):
    """The selection with the highest `score` [rows, columns] (larger is better) that covers about
    `density` of the matrix.

    Rows, columns and blocks are judged by their sum (a ragged block by the entries it has). At
    least one is taken. "entries_per_row" takes the same number in each row. density: share in (0,
    1].
    """
    rows, columns = score.shape
    if structure == "rows":
        return Rows(_best(score.sum(1, dtype=_wide(score)), density))
    if structure == "columns":
        return Columns(_best(score.sum(0, dtype=_wide(score)), density))
    if structure == "entries":
        return Entries(_best(score.reshape(-1), density))
    if structure == "entries_per_row":
        column = score.topk(count_of(columns, density), dim=1).indices
        return Entries(
            (column + torch.arange(rows, device=score.device)[:, None] * columns)
            .reshape(-1)
            .sort()
            .values
        )
    height, width = block_size = fitted(block_size, (rows, columns))
    padded = torch.nn.functional.pad(score, (0, -columns % width, 0, -rows % height))
    sums = (
        padded.unflatten(1, (-1, width)).unflatten(0, (-1, height)).sum((1, 3), dtype=_wide(score))
    )  # [block_rows, block_cols]
    best = _best(sums.reshape(-1), density)
    return Blocks(torch.stack((best // sums.size(1), best % sums.size(1)), 1), block_size)


def fitted(block_size, shape):
    """`block_size` (height, width), cut to a matrix of `shape` where it is larger."""
    return tuple(min(block, size) for block, size in zip(block_size, shape))


def _best(score, density):
    return score.topk(count_of(score.numel(), density)).indices.sort().values


def count_of(n, density):
    return max(1, round(n * density))


def _wide(score):
    return torch.promote_types(torch.float32, score.dtype)
