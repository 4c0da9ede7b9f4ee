"""Parts of several deltas of one tensor, brought to the same entries to calculate with."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..selection import Entries, Selection
from . import places
from .delta import Delta
from .overlap import sorted_positions
from .part import Part


class Shared(NamedTuple):
    """Parts of one tensor on the union of their entries, [n] in the order of their positions.

    values, touched: [parts, n]; where a part does not touch an entry, its value is the base's.
    origin: [n], the base's values, 0 where no part knows them.
    """

    positions: torch.Tensor
    values: torch.Tensor
    touched: torch.Tensor
    origin: torch.Tensor


def shared(parts: Sequence[Part]) -> Shared:
    """The `parts` of one tensor on the union of their entries, on the CPU."""
    flat = [sorted_positions(part) for part in parts]
    union = torch.cat(flat).unique() if len(flat) > 1 else flat[0]
    dtype = parts[0].values.dtype
    values = torch.zeros(len(parts), len(union), dtype=dtype, device="cpu")
    touched = torch.zeros(len(parts), len(union), dtype=torch.bool, device="cpu")
    origin = torch.zeros(len(union), dtype=dtype, device="cpu")
    for number, (part, positions) in enumerate(zip(parts, flat)):
        places_in = torch.searchsorted(union, positions)
        values[number, places_in] = in_order(part, part.values)
        touched[number, places_in] = True
        if part.origin is not None:
            origin[places_in] = in_order(part, part.origin)
    values = torch.where(touched, values, origin)
    return Shared(union, values, touched, origin)


def in_order(part: Part, values: torch.Tensor) -> torch.Tensor:
    """`values`, shaped as those of `part`, in the order of their positions.

    [n] on the CPU, without padding.
    """
    flat = values.detach().cpu().reshape(-1)
    if part.selection is None or part.selection.kind in ("rows", "entries"):
        return flat
    positions = places.positions_of(part.selection.to("cpu"), part.matrix_shape)
    kept = positions >= 0
    return flat[kept][positions[kept].argsort()]


def put_together(
    parts: Sequence[Part], shared_ones: Shared, values: torch.Tensor, origin: torch.Tensor | None
) -> Part:
    """The part whose entries are those of `shared_ones` and hold `values` [n].

    It has the structure that all `parts` have, if they have one, else single entries.
    """
    first = parts[0]
    selections = [part.selection for part in parts]
    whole = next((part for part in parts if part.selection is None), None)
    if whole is not None:
        shape = whole.values.shape
        old = None if origin is None else origin.view(shape)
        return Part.whole(values.view(shape), old, first.reader)
    one = selections[0]
    same = one is not None and all(selection == one for selection in selections)
    selection = one.to("cpu") if one is not None and same else _entries(shared_ones, first)
    new = _shaped(selection, first.matrix_shape, values)
    old = None if origin is None else _shaped(selection, first.matrix_shape, origin)
    return Part(selection, new, first.shape, first.matrix_shape, old, "", first.reader)


def _entries(shared_ones: Shared, part: Part) -> Selection:
    return Entries(shared_ones.positions).on(part.matrix_shape)


def _shaped(
    selection: Selection, matrix_shape: tuple[int, int], ordered: torch.Tensor
) -> torch.Tensor:
    """`ordered`, one number an entry in the order of positions, as values of `selection`."""
    shape = selection.values_shape(matrix_shape)
    positions = places.positions_of(selection, matrix_shape)
    kept = positions >= 0
    values = torch.zeros(len(positions), dtype=ordered.dtype, device="cpu")
    order = positions[kept].argsort()
    values[kept.nonzero().squeeze(1)[order]] = ordered
    return values.view(shape)


def names_of(deltas: Sequence[Delta]) -> list[str]:
    """The tensors that any of `deltas` touch, in their order."""
    names = {name: None for delta in deltas for name in delta}
    return list(names)
