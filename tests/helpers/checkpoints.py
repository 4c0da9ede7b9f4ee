"""A converted net, trained or not, and ways that its state_dict goes."""

import copy
import io

import torch
from torch import nn

import sparse_ft as sft


def build(dtype=torch.float32, seed=0):
    """Every kind of owner: a linear layer, an embedding, an aliased convolution, a bias
    and a norm.
    """
    torch.manual_seed(seed)
    layers = dict(
        table=nn.Embedding(9, 8),
        linear=nn.Linear(8, 8),
        norm=nn.LayerNorm(8),
        conv=nn.Conv1d(5, 4, 3),
        head=nn.Linear(6, 3),
    )
    return nn.Sequential(nn.ModuleDict(layers)).to(dtype)


def forward(model):
    m = model[0]
    x = m["norm"](m["linear"](m["table"](torch.arange(10).view(2, 5) % 9)))
    return m["head"](m["conv"](x))


def plan(shift=0):
    """Two plans of the same sizes."""
    return {
        "0.table.weight": sft.Rows([1 + shift, 4]),
        "0.linear.weight": sft.Columns([0, 2 + shift]),
        "0.linear.bias": sft.Entries([3 + shift]),
        "0.norm.weight": sft.Entries([0 + shift, 6]),
        "0.conv.weight": sft.Rows([1 + shift]),
        "0.head.bias": "all",
    }


def trained(dtype=torch.float32, shift=0, steps=3, values_dtype=None):
    model = build(dtype)
    sft.convert(model, plan(shift), values_dtype=values_dtype)
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=0.05)
    for _ in range(steps):
        forward(model).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def converted(shift=0, dtype=torch.float32, seed=1):
    model = build(dtype, seed)
    sft.convert(model, plan(shift))
    return model


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def through_torch(state, **options):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, **options)


def bare(state):
    """Without what torch keeps beside the tensors."""
    return dict(state.items())


FORMS = {"itself": lambda s: s, "torch": through_torch, "copy": copy.deepcopy, "bare": bare}
