"""Which entries two deltas have in common."""

import torch

from . import places
from .delta import Delta
from .part import Part


def overlapping(a: Delta, b: Delta) -> str | None:
    """The name of a tensor of which `a` and `b` change an entry both; None where there is none."""
    for name, part in a.items():
        if name in b and parts_overlap(part, b[name]):
            return name
    return None


def parts_overlap(a: Part, b: Part) -> bool:
    """Whether two parts of one tensor change an entry both."""
    if a.selection is None or b.selection is None:
        return True
    if a.selection.kind == b.selection.kind and a.selection.block_size == b.selection.block_size:
        return _common_index(a.selection.index, b.selection.index)
    return bool(torch.isin(sorted_positions(a), sorted_positions(b), assume_unique=True).any())


def _common_index(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two indices of one kind, [n] or [n, 2], have an element in common."""
    a, b = a.long().cpu(), b.long().cpu()
    if a.dim() == 2:
        width = int(max(a[:, 1].max(), b[:, 1].max())) + 1
        a, b = a[:, 0] * width + a[:, 1], b[:, 0] * width + b[:, 1]
    return bool(torch.isin(a, b, assume_unique=True).any())


def sorted_positions(part: Part) -> torch.Tensor:
    """Flat positions of the entries of a part, sorted, without padding: [n] int64 on the CPU."""
    if part.selection is None:
        return torch.arange(part.values.numel(), device="cpu")
    positions = places.positions_of(part.selection.to("cpu"), part.matrix_shape)
    return positions[positions >= 0].sort().values
