"""What a delta is made of: the parts of a converted model."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..nn import origin_of
from ..selection import Entries, Selection
from . import places
from .fingerprint import fingerprint, written
from .over_codes import fingerprint_of_codes
from .part import Part
from .rest import rest_of_matrix


def part_of(each: places.Trained) -> Part:
    """What changed in one tensor of a converted model: a copy."""
    if each.selection is None:
        return Part.whole(each.weight.clone(), kept_origin(each), each.reader)
    shape = tuple(each.weight.shape)
    matrix = each.weight.view(each.matrix_shape)
    selection, origin = ever_selected(each)
    values = places.gathered(matrix, selection)
    if each.layer is None:
        rest = written(rest_of_matrix(matrix, selection, values, fingerprint(matrix)))
    else:
        rest = fingerprint_of_codes(each.layer)
    return Part(selection, values, shape, each.matrix_shape, origin, rest, each.reader)


def ever_selected(each: places.Trained) -> tuple[Selection, torch.Tensor | None]:
    """All entries of a selected tensor that have trained, and what the base holds there, where that
    is kept.

    Those of its selection, and, as single entries, those that a reselection has dropped and left as
    they were.
    """
    origin, left = kept_origin(each), each.left
    selection: Any = each.selection
    if left is None:
        return selection.on(each.matrix_shape), origin
    now = places.positions_of(selection, each.matrix_shape)
    every = torch.cat([now[now >= 0], left.positions.to(now.device)])
    order = every.argsort()
    known = None
    if origin is not None and left.origin is not None:
        dropped = left.origin.to(origin)
        known = torch.cat([origin.reshape(-1)[now >= 0], dropped])[order]
    return Entries(every[order]).on(each.matrix_shape), known


def kept_origin(each: places.Trained) -> torch.Tensor | None:
    """What the base holds at the entries that train, in the dtype of the weight.

    None unless `sft.convert(..., origin=True)` has kept it.
    """
    origin = origin_of(each.parameter)
    return None if origin is None else origin.detach().to(each.weight.dtype, copy=True)


def buffers_of(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The persistent buffers of a model, by the names that a state_dict gives them."""
    kept = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in kept:
            yield name, buffer


def name_of(model: nn.Module) -> str | None:
    """What a Hugging Face model was loaded from."""
    name = getattr(getattr(model, "config", None), "name_or_path", None)
    return name if isinstance(name, str) and name else None
