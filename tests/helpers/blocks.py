"""A small block of many kinds of layers, a plan of it, and all that may change in it."""

import torch
from torch import nn

import sparse_ft as sft


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8, bias=False)
        self.conv = nn.Conv1d(8, 6, 3, padding=1)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 5)

    def forward(self, tokens):
        hidden = self.down(self.up(self.embed(tokens)).relu())
        return self.head(self.norm(self.conv(hidden.transpose(1, 2)).transpose(1, 2)))


PLAN = {
    "embed.weight": sft.Rows([2, 5]),
    "up.weight": sft.Columns([0, 7]),
    "down.weight": sft.Blocks([[0, 1], [2, 2]], (3, 5)),
    "conv.weight": sft.Entries([0, 50, 143]),
    "head.bias": "all",
    "up.bias": sft.Entries([3]),
}
TRAINABLE = {
    "embed.weight": 16,
    "up.weight": 24,
    "down.weight": 3 * 5 + 2 * 2,
    "conv.weight": 3,
    "head.bias": 5,
    "up.bias": 1,
}


def everything(model):
    return {
        "bytes": {
            name: (t.dtype, t.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
            for name, t in model.state_dict().items()
        },
        "flags": {
            name: (p.requires_grad, id(p), p._version, id(p.grad))
            for name, p in model.named_parameters()
        },
        "types": [(name, type(module)) for name, module in model.named_modules()],
        "keys": [(name, sorted(module.__dict__)) for name, module in model.named_modules()],
        "hooks": [
            len(module._forward_pre_hooks)
            + len(module._forward_hooks)
            + len(module._load_state_dict_pre_hooks)
            for module in model.modules()
        ],
    }
