"""What the kernels of selected_wgrad must know of an index beyond the index itself.

Made once, and dropped with it.
"""

import math
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

WIDTHS = 64, 128, 256  # features of the gathered operand that one program takes
PANEL = 128  # features of a panel that it takes at most
# id of an index -> (it, weakly; its version; {what: table})
_kept: dict[int, tuple[weakref.ref, int, dict]] = {}
# (address, shape, strides, dtype) -> the index that tables were made for, while it lives
_lying: "weakref.WeakValueDictionary[tuple, torch.Tensor]" = weakref.WeakValueDictionary()


def tables_of(index: torch.Tensor) -> dict:
    """What is kept of an index as it is now, to be added to; dropped with it, and when it is
    edited.

    It is looked up by the identity and the version of the index, or of the one whose memory it
    shows: compiled graphs hand over aliases.
    """
    tables = _tables_of(index)
    if tables is not None:
        return tables
    if index.is_inference():  # counts no versions
        return {}
    first = _lying.setdefault(_place(index), index)
    tables = _tables_of(first)
    return _keep(first) if tables is None else tables


def _tables_of(index: torch.Tensor) -> dict | None:
    found = _kept.get(id(index))
    if found is None:
        return None
    about, version, tables = found
    return tables if about() is index and version == index._version else None


def _keep(index: torch.Tensor) -> dict:
    key = id(index)

    def forget(about: weakref.ref) -> None:
        if key in _kept and _kept[key][0] is about:
            del _kept[key]

    tables: dict = {}
    _kept[key] = weakref.ref(index, forget), index._version, tables
    return tables


def _once_per_index(build: Callable[..., Any]) -> Callable[..., Any]:
    """Only a new table waits for the device."""

    def look_up(index: torch.Tensor, *arguments: int) -> Any:
        tables = tables_of(index)
        key = build, arguments
        if key not in tables:
            tables[key] = build(index, *arguments)
        return tables[key]

    return look_up


def _place(index: torch.Tensor) -> tuple:
    """Where an index lies, and how: as long as another one lives there, it has the same numbers."""
    return index.data_ptr(), index.shape, index.stride(), index.dtype


class Panels(NamedTuple):
    """Blocks sorted by the panel that they share.

    A panel is the features of one block row or one block column.
    """

    shared: int  # 0: a block row's panel of grad_output; 1: a block column's panel of input
    order: torch.Tensor  # int32 [n], the blocks panel by panel
    others: torch.Tensor  # int32 [n], coordinate of each of them along the gathered operand
    groups: list  # of (panel, position in order of its first block, number of its blocks)
    width: int
    # int32 [tiles, 4], the work of a program: a group, and its first gathered column
    tiles: torch.Tensor
    loads: int  # features that all programs load for one token


@_once_per_index
def panels(index: torch.Tensor, block_h: int, block_w: int) -> Panels:
    """The grouping that loads fewer features: by block row or by block column.

    Blocks of a panel keep their order.
    """
    groups = [_group(index[:, side].long()) for side in (0, 1)]
    loads = [
        _loads(*groups[side][1:], *sizes)
        for side, sizes in enumerate([(block_h, block_w), (block_w, block_h)])
    ]
    shared = int(loads[1] < loads[0])
    order, panel, count = groups[shared]
    first = count.cumsum(0) - count
    gathered = (block_w, block_h)[shared]
    # The mean decides: a wider tile would be padding for most panels, a narrower one would load
    # them again.
    mean = index.size(0) * gathered / max(1, panel.numel())
    widest = _widest((block_h, block_w)[shared], gathered)
    width = min(next((width for width in WIDTHS if width >= mean), widest), widest)
    steps = (count * gathered + width - 1) // width
    group = torch.arange(panel.numel(), device=index.device).repeat_interleave(steps)
    start = (
        torch.arange(group.numel(), device=index.device) - (steps.cumsum(0) - steps)[group]
    ) * width
    table = torch.stack([panel, first, count], 1)
    tiles = torch.cat([table[group], start[:, None]], 1).int()
    others = index[:, 1 - shared].int()[order]
    return Panels(
        shared,
        order.int(),
        others,
        [tuple(row) for row in table.tolist()],
        width,
        tiles,
        loads[shared],
    )


def _group(coordinate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    order = coordinate.argsort(stable=True)
    return order, *torch.unique_consecutive(coordinate[order], return_counts=True)


def _widest(size: int, gathered: int) -> int:
    """What leaves registers for the addresses, by what the compiler reports.

    Less where every feature has its own.
    """
    if gathered % 16:
        return WIDTHS[0]
    return WIDTHS[-1] if size <= PANEL // 2 else WIDTHS[-2]


def _loads(panel: torch.Tensor, count: torch.Tensor, size: int, gathered: int) -> int:
    """Features that all programs load for one token, each program a panel and its share of the
    gathered ones.
    """
    widest = _widest(size, gathered)
    programs = (count * gathered + widest - 1) // widest
    return int(programs.sum()) * size + -(-size // PANEL) * int(count.sum()) * gathered


# Rows by which a strip may grow: what the library's tiles have, down to the 8 that keep the first
# feature of a 16-bit strip on 16 bytes.
STEPS = 128, 64, 32, 16, 8
LEAST = 64  # rows of a last strip: a product of fewer leaves most of a tile empty


def strip_height(rows: int, most: int, unit: int = 1) -> int:
    """Rows of each strip of a matrix of `rows`: a multiple of `unit`, of about one size.

    most: what the workspace holds. Strips start on 16 bytes and the last one has 64 rows or more,
    wherever the workspace and the unit allow it.
    """
    aligned = None
    for step in STEPS:
        step = math.lcm(step, unit)
        fits = most // step * step
        if not fits:
            continue
        even = -(-rows // -(-rows // fits))
        height = -(-even // step) * step
        last = rows % height
        if height >= rows or last == 0 or last >= LEAST:
            return height
        aligned = aligned or height
    return aligned or max(unit, most // unit * unit)


@_once_per_index
def block_strips(index: torch.Tensor, block_rows: int, height: int) -> list[tuple]:
    """[(first block row, last + 1, first block, last + 1, blocks [n, 2] counted from there)] of
    strips of `height` block rows.

    Of a sorted index: the blocks of a strip are a slice.
    """
    edges = list(range(0, block_rows, height)) + [block_rows]
    cuts = torch.searchsorted(
        index[:, 0].contiguous(), torch.tensor(edges, device=index.device, dtype=index.dtype)
    ).tolist()
    found = [
        (*row, *cut)
        for row, cut in zip(zip(edges, edges[1:]), zip(cuts, cuts[1:]))
        if cut[0] < cut[1]
    ]
    return [
        (*strip, index[strip[2] : strip[3]] - index.new_tensor([strip[0], 0])) for strip in found
    ]


@_once_per_index
def strips(
    index: torch.Tensor, rows: int, columns: int, height: int
) -> list[tuple[int, int, int, int]]:
    """[(first row, last row + 1, first entry, last entry + 1)] of the strips of `height` rows that
    hold any entry.

    Sorted flat positions make each strip a slice of the entries.
    """
    edges = list(range(0, rows, height)) + [rows]
    cuts = torch.searchsorted(
        index, torch.tensor(edges, device=index.device, dtype=torch.int64) * columns
    ).tolist()
    return [
        (*row, *cut)
        for row, cut in zip(zip(edges, edges[1:]), zip(cuts, cuts[1:]))
        if cut[0] < cut[1]
    ]
