"""Selections of one small matrix, of every structure."""

import oracle

import sparse_ft as sft

SHAPE = (7, 10)
SELECTIONS = {
    "rows": sft.Rows([1, 4, 6]),
    "columns": sft.Columns([0, 3, 9]),
    "entries": sft.Entries([0, 9, 10, 33, 69]),
    "blocks": sft.Blocks([[0, 0], [1, 1]], (3, 4)),
    "ragged blocks": sft.Blocks([[0, 0], [0, 2], [2, 1], [2, 2]], (3, 4)),
    "one block": sft.Blocks([[0, 0]], (7, 10)),
}


def mask_of(selection, shape=SHAPE):
    return oracle.mask(selection.layout, shape)
