"""Heads of `torch.nn.MultiheadAttention`, which calls one function of torch's for all of it.

Nothing between its products is to be seen; where its heads are is what torch documents.
"""

from collections.abc import Mapping

import torch
from torch import nn

from .unit import Group, Share


def documented_heads(model: nn.Module, named: Mapping[str, nn.Parameter]) -> list[Group]:
    """Heads and query heads of each `nn.MultiheadAttention` that has more than one head."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module.num_heads > 1:
            for kind, every in (
                ("heads", _shares(path, module)),
                ("query_heads", _query_shares(path, module)),
            ):
                shares = tuple(share for share in every if share.parameter in named)
                found.append(Group(kind, path, module.num_heads, shares))
    return found


def _query_shares(path: str, module: nn.MultiheadAttention) -> list[Share]:
    """What its query heads have: rows of the queries' projection, columns of the output's."""
    prefix = f"{path}." if path else ""
    one = _heads(module.embed_dim, module.head_dim)
    return [
        Share(f"{prefix}in_proj_weight", 0, *one),
        Share(f"{prefix}q_proj_weight", 0, *one),
        Share(f"{prefix}in_proj_bias", 0, *one),
        Share(f"{prefix}out_proj.weight", 1, *one, takes=True),
    ]


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
    index = torch.arange(copies * width, device="cpu")
    owner = index % width // size
    order = owner.sort(stable=True).indices
    return index[order], owner[order]
