"""A small model of every structure whose selections change every 10 steps, and its dense twin."""

import torch
from torch import nn

import sparse_ft as sft

from .dense_masked import DenseMasked

SHAPES = {
    "embed.weight": (12, 16),
    "first.weight": (24, 16),
    "second.weight": (20, 24),
    "third.weight": (9, 20),
    "conv.weight": (9, 27),
}
STEPS, EVERY = 200, 10


class Net(nn.Module):
    """Two selective layers, an embedding, an aliased convolution, and a layer that is not lean."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 16)
        self.first, self.second, self.third = nn.Linear(16, 24), nn.Linear(24, 20), nn.Linear(20, 9)
        self.conv = nn.Conv1d(9, 9, 3, padding=1)

    def forward(self, tokens):
        x = torch.tanh(self.first(self.embed(tokens)))
        x = self.third(nn.functional.gelu(self.second(x)))
        return self.conv(x.transpose(1, 2))


def plan_of(seed):
    """Every kind, with the same counts at every seed."""
    draw = torch.Generator().manual_seed(seed)

    def some(count, of):
        return torch.randperm(of, generator=draw)[:count].sort().values

    blocks = some(8, 5 * 6)
    return {
        "embed.weight": sft.Rows(some(5, 12)),
        "first.weight": sft.Entries(some(90, 24 * 16)),
        "second.weight": sft.Blocks(torch.stack((blocks // 6, blocks % 6), 1), (4, 4)),
        "third.weight": sft.Columns(some(7, 20)),
        "conv.weight": sft.Entries(some(60, 9 * 27)),
    }


def masks_of(model, plan):
    weights = dict(model.named_parameters())
    return {
        name: selection.mask(SHAPES[name]).view(weights[name].shape)
        for name, selection in plan.items()
    }


def loss_of(model, step, dtype):
    """Towards noise, which no step comes near: gradients that vanish would enlarge rounding."""
    draw = torch.Generator().manual_seed(step)
    tokens = torch.randint(12, (4, 6), generator=draw)
    target = torch.randn(4, 9, 6, generator=draw).to(dtype)
    return (model(tokens) - target).square().mean()


def backward(model, step, dtype):
    loss_of(model, step, dtype).backward()


def dense_run(dtype, lr=1e-3, backward=backward, **settings):
    model = net(dtype)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    weights = {n: p.requires_grad_() for n, p in model.named_parameters() if n in SHAPES}
    restore = settings.pop("restore", False)
    dense = DenseMasked(weights, masks_of(model, plan_of(0)), lr, **settings)
    for step in range(STEPS):
        if step and step % EVERY == 0:
            dense.reselect(masks_of(model, plan_of(step)), restore)
        backward(model, step, dtype)
        dense.step()
    return model


def net(dtype):
    torch.manual_seed(0)
    return Net().to(dtype)


def our_run(
    dtype, lr=1e-3, convert=(), reselect=(), change=None, backward=backward, step=None, **settings
):
    model = net(dtype)
    sft.convert(model, plan_of(0), **dict(convert))
    optimizer = sft.SelectiveAdamW(model.parameters(), lr, **{"weight_decay": 0.0, **settings})
    identities = [id(p) for p in model.parameters()]
    for number in range(STEPS):
        if number and number % EVERY == 0:
            sft.reselect(model, optimizer, plan_of(number), **dict(reselect))
            if change is not None:
                model, optimizer = change(model, optimizer, number)
        backward(model, number, dtype)
        optimizer.step() if step is None else step(optimizer)
        optimizer.zero_grad()
    if change is None:
        assert identities == [id(p) for p in model.parameters()]
    return sft.revert(model)


def distance(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((a.detach() - b.detach()).abs().max().item() for a, b in pairs)
