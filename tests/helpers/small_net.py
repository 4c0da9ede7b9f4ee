"""A small model with every kind of selective module in it, and what the optimiser's tests do with
it.
"""

import torch
from torch import nn

import sparse_ft as sft

PLAN = {
    "embed.weight": sft.Rows([0, 2, 5]),
    "first.weight": sft.Columns([1, 3]),
    "first.bias": "all",
    "conv.weight": sft.Rows([0, 3]),
    "norm.weight": sft.Entries([0, 7]),
    "second.weight": sft.Blocks([[0, 1], [1, 2]], (5, 3)),
    "third.weight": sft.Entries([0, 11, 30]),
    "third.bias": "all",
}


class Net(nn.Module):
    """Replaced layers of every structure, two aliases, and two parameters that train whole."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 8)
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.conv, self.norm = nn.Conv1d(8, 8, 3, padding=1), nn.LayerNorm(8)

    def forward(self, tokens):
        x = torch.tanh(self.first(self.embed(tokens)))
        x = self.norm(x + self.conv(x.transpose(1, 2)).transpose(1, 2))
        return self.third(torch.tanh(self.second(x)))


def net(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    model = Net().to(dtype)
    sft.convert(model, PLAN)
    return model


def loss_of(model, seed):
    tokens = torch.randint(
        6, (3, 4), generator=torch.Generator(torch.get_default_device()).manual_seed(seed)
    )
    return model(tokens).float().square().mean()


def train(model, optimizer, steps, start=0, scheduler=None):
    for seed in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, seed).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def trained(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def weights(model):
    """The stored tensors, read past everything that would synchronise them."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def everything(model, optimizer):
    """All tensors of the model and of the optimiser's state, by name."""
    names = {p: name for name, p in model.named_parameters()}
    states = {
        f"{names[p]} {key}": t.clone()
        for p, state in optimizer.state.items()
        for key, t in state.items()
    }
    return {**weights(model), **states}


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    different = [
        name for name in a if not torch.equal(a[name], b[name]) or a[name].dtype != b[name].dtype
    ]
    assert not different, different


def assert_weights_show_values(model):
    for module in model.modules():
        if isinstance(module, sft.nn.Selected):
            shown = module.selection.gather(module._matrix())
            assert torch.equal(shown, module._parameters["values"].detach().to(shown.dtype)), (
                module.label
            )


def trained_parameters(model):
    return [p for p in model.parameters() if p.requires_grad]
