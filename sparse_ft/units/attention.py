"""Heads of `torch.nn.MultiheadAttention`, which calls one function of torch's for all of it.

Nothing between its products is to be seen; where its heads are is what torch documents.
"""

from collections.abc import Mapping

import torch
from torch import nn

from .unit import Group, Share


def documented_heads(model: nn.Module, named: Mapping[str, nn.Parameter]) -> list[Group]:
    """A group of heads for each `nn.MultiheadAttention` that has more than one."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module.num_heads > 1:
            shares = [share for share in _shares(path, module) if share.parameter in named]
            found.append(Group("heads", path, module.num_heads, tuple(shares)))
    return found


def _shares(path: str, module: nn.MultiheadAttention) -> list[Share]:
    """What its heads have: rows of the projections of queries, keys and values, columns of the
    output's.
    """
    prefix = f"{path}." if path else ""
    width, size = module.embed_dim, module.head_dim
    packed = _heads(width, size, copies=3)
    one = _heads(width, size)
    shares = [
        Share(f"{prefix}in_proj_weight", 0, *packed),
        *(Share(f"{prefix}{name}_proj_weight", 0, *one) for name in "qkv"),
        Share(f"{prefix}in_proj_bias", 0, *packed),
        Share(f"{prefix}bias_k", 2, *one),
        Share(f"{prefix}bias_v", 2, *one),
        Share(f"{prefix}out_proj.weight", 1, *one, takes=True),
    ]
    return shares


def _heads(width: int, size: int, copies: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """(index, owner) of `copies` of `width` features one after another, `size` a head."""
    index = torch.arange(copies * width)
    owner = index % width // size
    order = owner.sort(stable=True).indices
    return index[order], owner[order]
