"""diff: the delta between two models, whoever trained them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..checkpoint import state_dict
from ..messages import check_module, described
from ..nn.sharded import WHOLE, refuse_sharded
from ..places import matrix_shape
from ..selection import Columns, Entries, Rows, Selection
from . import places
from .delta import Delta
from .fingerprint import bits_of, fingerprint, written
from .making import name_of
from .part import Part
from .rest import rest_of, rest_of_matrix

_POSITION = 1.25  # bytes that the position of an entry takes in a file, about


def diff(base: nn.Module, trained: nn.Module | Mapping[str, torch.Tensor]) -> Delta:
    """What changed from `base` to `trained`: `sft.apply(base, delta)` gives `trained`, bit for bit.

    base: the model before, not converted. trained: the model after, converted or not, or what its
    `state_dict()` gave. One tensor after the other is compared, bit by bit, and becomes entries,
    rows, columns or the whole tensor, whichever takes the fewest bytes. The delta knows what the
    base holds (`origin`). Raises ValueError for tensors that one of both lacks, or that have
    another shape or dtype, naming them.
    """
    check_module("base", base)
    if not isinstance(trained, (nn.Module, Mapping)):
        raise TypeError(f"trained: expected an nn.Module or a state_dict, got {described(trained)}")
    for model in (base, trained):
        if isinstance(model, nn.Module):
            refuse_sharded(model, WHOLE)
    after = state_dict(trained) if isinstance(trained, nn.Module) else dict(trained)
    before = state_dict(base)
    _check(before, after)
    parts, seen, tied = {}, set(), places.tied_in(base)
    for name, tensor in before.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        memory = tensor.data_ptr(), tensor.shape, tensor.stride()
        if tensor.numel() and memory in seen:
            continue  # tied to one that has its part
        seen.add(memory)
        part = _part(base, name, tensor, after[name].detach().to(tensor.device))
        if part is not None:
            is_tied = name in tied
            parts[name] = dataclasses.replace(part, reader=places.TIED) if is_tied else part
    return Delta(parts, rest_of(base, parts), name_of(base))


def _check(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name in [*before, *after]:
        if name not in after or name not in before:
            which = "base" if name not in before else "trained"
            raise ValueError(f"{which}: it has no tensor {name!r}, and the other one has")
        old, new = before[name], after[name]
        if not isinstance(old, torch.Tensor) or not isinstance(new, torch.Tensor):
            continue
        if old.shape != new.shape or old.dtype != new.dtype:
            raise ValueError(
                f"trained: {name!r} is {tuple(new.shape)} {new.dtype}, and in base"
                f" {tuple(old.shape)} {old.dtype}; a delta changes numbers only"
            )


def _part(model: nn.Module, name: str, old: torch.Tensor, new: torch.Tensor) -> Part | None:
    """The part of one tensor, None where every bit is the same."""
    old, shape = old.detach().contiguous(), tuple(old.shape)
    new = new.contiguous()
    changed = bits_of(old) != bits_of(new)
    if not changed.any():
        return None
    owner, attribute = places.owner_of(model, name)
    reader = places.reader_of(owner, attribute)
    is_matrix = old.is_floating_point() and old.dim() and attribute in owner._parameters
    matrix = matrix_shape(model, name) if is_matrix else None
    selection = None if matrix is None else _selection(changed.view(matrix), old.element_size())
    if selection is None or matrix is None:
        return Part.whole(new.clone(), old.clone(), reader)
    selection = selection.on(matrix)
    values = places.gathered(new.view(matrix), selection)
    origin = places.gathered(old.view(matrix), selection)
    whole = fingerprint(old)
    rest = written(rest_of_matrix(old.view(matrix), selection, origin, whole))
    return Part(selection, values, shape, matrix, origin, rest, reader)


def _selection(changed: torch.Tensor, size: int) -> Selection | None:
    """The selection of all that is True in `changed` [rows, columns], in the fewest bytes.

    size: bytes of an entry. None for the whole tensor.
    """
    rows, columns = changed.any(1), changed.any(0)
    entries = int(changed.sum())
    sizes = {
        "all": changed.numel() * size,
        "rows": int(rows.sum()) * (changed.size(1) * size + 4),
        "columns": int(columns.sum()) * (changed.size(0) * size + 4),
        "entries": entries * (size + _POSITION),
    }
    kind = min(sizes, key=sizes.__getitem__)
    if kind == "all":
        return None
    if kind == "rows":
        return Rows(rows.nonzero().squeeze(1))
    if kind == "columns":
        return Columns(columns.nonzero().squeeze(1))
    return Entries(changed.reshape(-1).nonzero().squeeze(1))
