"""Selections of a small weight, and their products in plain PyTorch."""

import oracle
import torch
import torch.nn.functional as F

import sparse_ft as sft

OUT, IN = 7, 10
SELECTIONS = {
    "rows": sft.Rows([1, 4, 6]),
    "one row": sft.Rows([0]),
    "all rows": sft.Rows(list(range(OUT))),
    "columns": sft.Columns([0, 3, 9]),
    "one column": sft.Columns([9]),
    "all columns": sft.Columns(list(range(IN))),
    "blocks": sft.Blocks([[0, 0], [0, 2], [2, 2]], (3, 4)),
    "one block": sft.Blocks([[1, 0]], 4),
    "entries": sft.Entries([0, 9, 10, 33, 69]),
    "one entry": sft.Entries([69]),
}
KINDS = ("rows", "columns", "blocks", "entries")


def randn(*shape, dtype=torch.float64, grad=True):
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_(grad)


def shown(base, selection, values):
    """A weight that shows `values`, as the functions expect."""
    return selection.scatter_(base.clone(), values.detach())


def plain_linear(input, base, values, selection, bias=None):
    """The same in differentiable PyTorch: gradients of `values` through a dense weight."""
    keep = ~oracle.padding(selection.layout, base.shape)
    flat = torch.tensor(
        [r * base.shape[1] + c for _, r, c in oracle.places(*selection.layout, base.shape)]
    )
    weight = base.reshape(-1).index_put((flat,), values[keep].to(base.dtype)).view(base.shape)
    return F.linear(input, weight, bias)
