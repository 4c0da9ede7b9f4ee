"""Small models of every kind of part, trained a little, and what tests of deltas compare."""

import copy

import torch
from torch import nn

import sparse_ft as sft

WIDTH = 12


class Net(nn.Module):
    """Linear layers, an embedding, a norm, a convolution and running statistics."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.batch_norm = nn.BatchNorm1d(WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, tokens):
        x = self.embed(tokens)
        x = x + self.batch_norm(self.conv(x.transpose(1, 2))).transpose(1, 2)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.head(self.norm(x))


PLAN = sft.Plan(
    {
        "embed.weight": sft.Rows([1, 4, 7, 19]),
        "conv.weight": sft.Entries([0, 5, 100, 431]),
        "layers.0.weight": sft.Rows([2, 3]),
        "layers.1.weight": sft.Columns([0, 11]),
        "layers.2.weight": sft.Blocks([[0, 1], [2, 0]], (5, 7)),
        "layers.3.weight": sft.Entries([0, 1, 50, 143]),
        "norm.weight": sft.Entries([3, 4]),
        "head.weight": "all",
        "head.bias": "all",
    }
)


def net(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return Net().to(dtype)


def trained(plan=PLAN, dtype=torch.float32, steps=3, seed=0, **kwargs):
    """A converted `net` that has trained a few steps."""
    model = net(dtype, seed)
    sft.convert(model, plan, **kwargs)
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        tokens = torch.randint(20, (4, 6), generator=generator)
        model(tokens).float().pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def bits(model):
    """{name: the bytes of each tensor of its state_dict, without what conversion adds}."""
    return {
        name: tensor.detach().contiguous().reshape(-1).view(torch.uint8).clone()
        for name, tensor in sft.state_dict(model).items()
    }


def same_bits(a, b):
    """Whether two models, or what `bits` gave of them, hold the same bits."""
    a, b = (each if isinstance(each, dict) else bits(each) for each in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def reverted(model):
    """A copy of a converted model, converted no more: what a user would ship."""
    return sft.revert(copy.deepcopy(model))
