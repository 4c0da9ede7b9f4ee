"""A 7 x 10 SelectiveLinear of every kind of selection, and what a test asks of it."""

import torch
from torch import nn

import sparse_ft as sft

SELECTIONS = {
    "rows": sft.Rows([0, 3, 6]),
    "columns": sft.Columns([1, 2, 9]),
    "blocks": sft.Blocks([[0, 1], [1, 2]], 4),  # both ragged: the weight is 7 x 10
    "entries": sft.Entries([0, 5, 17, 33, 69]),
}


def make(selection, dtype=torch.float32, bias=True):
    torch.manual_seed(0)
    return sft.nn.SelectiveLinear.from_linear(nn.Linear(10, 7, bias=bias, dtype=dtype), selection)


def shows(module):
    """Whether the weight holds the values, looked at behind the property that synchronises."""
    weight, values = module._parameters["weight"].detach(), module.values.detach()
    return torch.equal(weight, module.selection.scatter_(weight.clone(), values))


def backward(module, dtype=torch.float32):
    module(torch.randn(5, 10, dtype=dtype)).square().sum().backward()
