"""Shards: a weight and its values that FSDP2 has split over the ranks, each along its dimension 0.

Forward and backward gather both into fresh memory. So the gathered weight is never written: after
each optimiser step every rank writes the values into its own part of the weight, and every gather
finds them there.

Columns need no communication: a row of the weight lies where its values do. Of other structures a
rank's values may belong into any rank's part of the weight: one all-gather of the values.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed

from .. import ops
from ..ops.layout import Layout, inside
from ..selection import Selection
from .dtensors import Split, local_of, over_ranks, split_of, whole_of


@dataclasses.dataclass(slots=True)
class Part:
    """Which values belong into a rank's part of the weight, and where.

    source: of the values, along dimension 0 (slice) or of them flat (int64 tensor); None: the
    rank's own part of them. shape: of the rank's part of the weight as a matrix. layout: of those
    values in that matrix.
    """

    source: Any
    shape: tuple[int, int]
    layout: Layout

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """Those of the values that belong here. values: all of them, or the own part."""
        if self.source is None:
            return values
        if isinstance(self.source, slice):
            return values[self.source]
        return values.reshape(-1)[self.source]


@dataclasses.dataclass(slots=True)
class Shards:
    """weight, values: DTensors, split alike. selection: on the whole weight, whose matrix has
    `shape`. label: the weight's name in messages.
    """

    label: str
    weight: Any
    values: Any
    selection: Selection
    shape: tuple[int, int]
    split: Split
    part: Part
    is_agreed: bool = False  # whether all ranks are known to train the same entries

    @classmethod
    def of(
        cls,
        label: str,
        weight: torch.Tensor,
        values: torch.Tensor,
        selection: Selection,
        shape: tuple[int, int],
    ) -> "Shards":
        """Raises ValueError, naming the weight, where the two are split in another way."""
        split, other = split_of(weight), split_of(values)
        if split is None or split != other:
            raise ValueError(
                f"{label}: its weight is placed as {_placed(weight)} and its values as"
                f" {_placed(values)}; selected entries train where fully_shard splits both along"
                " dimension 0 of one mesh (leave shard_placement_fn out)"
            )
        part = _part(weight, values, selection, shape, split)
        rows, columns = shape
        return cls(label, weight, values, selection, (rows, columns), split, part)

    @property
    def is_aligned(self) -> bool:
        """Whether a rank's values are those of its part of the weight: nothing is communicated."""
        return self.part.source is None

    def is_on_meta(self) -> bool:
        """Whether there are no numbers yet."""
        return local_of(self.weight).is_meta or local_of(self.values).is_meta

    def _matrix(self) -> torch.Tensor:
        return local_of(self.weight).view(self.part.shape)

    def _write(self, values: torch.Tensor) -> None:
        if values.numel():
            ops.scatter_selected_(self._matrix(), values, self.part.layout)

    def read_(self) -> None:
        """Let the values be what the weight holds at the selected entries. On all ranks together;
        unless aligned, the whole weight exists for a moment.
        """
        own = local_of(self.values)
        if self.is_aligned:
            own.copy_(ops.gather_selected(self._matrix(), self.part.layout, dtype=own.dtype))
            return
        (whole,) = whole_of([self.weight], [self.split])
        values = ops.gather_selected(whole.view(self.shape), self.selection.layout, dtype=own.dtype)
        span = self.split.span(values.size(0))
        own.copy_(values[span.start : span.end])

    def differing(self) -> int:
        """How many values on all ranks are not what the weight shows, but for two units in the last
        place. On all ranks together.
        """
        off = torch.tensor(self._differing_here(), device=local_of(self.weight).device)
        return int(over_ranks(off, self.split, distributed.ReduceOp.SUM))

    def _differing_here(self) -> int:
        ((_, values),) = _each([self])  # a collective, which ranks without any take part in, too
        if not values.numel():
            return 0
        dtypes = self.weight.dtype, self.values.dtype
        dtype = max(dtypes, key=lambda each: torch.finfo(each).eps)
        there = ops.gather_selected(self._matrix(), self.part.layout).to(dtype).double()
        limits = torch.finfo(dtype)
        close = torch.isclose(
            there, values.to(dtype).double(),
            rtol=2 * limits.eps, atol=2 * limits.eps * limits.smallest_normal, equal_nan=True,
        )  # fmt: skip
        return int((~close).sum())


@torch.no_grad()
def write(shards: Sequence[Shards]) -> None:
    """Every rank's part of the weights shows the values. On all ranks together, with the same
    shards in one order.
    """
    known = [one for one in shards if not one.is_on_meta()]
    check_agreed(known)
    for one, values in _each(known):
        one._write(values)


def check_agreed(shards: Sequence[Shards]) -> None:
    """Raise RuntimeError on every rank where ranks have selected other entries of a weight: each
    was converted by itself (`process_group=False`). Asked once of each. On all ranks together.
    """
    fresh = [one for one in shards if not one.is_agreed]
    for split in dict.fromkeys(one.split for one in fresh):
        of_split = [one for one in fresh if one.split == split]
        own = torch.tensor([_digest(one.selection) for one in of_split], device="cpu")
        most = over_ranks(own, split, distributed.ReduceOp.MAX)
        least = over_ranks(own, split, distributed.ReduceOp.MIN)
        for one, is_alike in zip(of_split, (most == least).tolist()):
            if not is_alike:
                raise RuntimeError(
                    f"{one.label}: the ranks have selected other entries of it each, so fully_shard"
                    " mixes up their values; convert all ranks with one plan (and without"
                    " process_group=False)"
                )
            one.is_agreed = True


def _digest(selection: Selection) -> int:
    """A number that two ranks share if and only if they have selected the same entries."""
    index: Any = selection.index.detach().cpu().to(torch.int64).contiguous().numpy()
    told = f"{selection.kind} {selection.block_size} {tuple(index.shape)}".encode()
    hashed = hashlib.blake2b(told + index.tobytes(), digest_size=8).digest()
    return int.from_bytes(hashed, "big", signed=True)


def _each(shards: Sequence[Shards]) -> Any:
    """(shards, the values that belong into this rank's part of its weight) of each."""
    apart = []
    for one in shards:
        if one.is_aligned:
            yield one, local_of(one.values)
        else:
            apart.append(one)
    gathered = whole_of([one.values for one in apart], [one.split for one in apart])
    for one, values in zip(apart, gathered):
        yield one, one.part.of(values)


def _part(
    weight: torch.Tensor,
    values: torch.Tensor,
    selection: Selection,
    shape: tuple[int, int],
    split: Split,
) -> Part:
    """See `Part`. A split along dimension 0 leaves each rank a run of the weight's entries."""
    rows, columns = shape
    each = weight.numel() // weight.size(0)  # entries
    span = split.span(weight.size(0))
    start, count = span.start * each, span.length * each
    index = selection.index
    layout = selection.layout
    has_whole_rows = weight.size(0) == rows or (columns and each % columns == 0)
    if has_whole_rows:
        first, height = start // columns, count // columns
        if selection.kind == "columns" and _is_aligned(weight, values, rows, split):
            return Part(None, (height, columns), layout)
        if selection.kind == "rows":
            chosen = _run(index, first, first + height)
            return Part(chosen, (height, columns), layout._replace(index=index[chosen] - first))
    if selection.kind == "entries":
        chosen = _run(index, start, start + count)
        return Part(chosen, (1, count), layout._replace(index=index[chosen] - start))
    row, column = torch.broadcast_tensors(*layout.places(shape))
    flat = (row * columns + column).reshape(-1)
    is_here = inside(row, column, shape).reshape(-1) & (flat >= start) & (flat < start + count)
    source = is_here.nonzero().squeeze(1)
    source = source[flat[source].argsort()]
    return Part(source, (1, count), Layout("entries", flat[source] - start))


def _is_aligned(weight: torch.Tensor, values: torch.Tensor, rows: int, split: Split) -> bool:
    """Whether every rank has the values of its rows of the matrix: all must know alike."""
    each = rows // weight.size(0)
    for rank in range(split.size):
        of_weight, of_values = (split.span(t.size(0), rank) for t in (weight, values))
        if (of_weight.start * each, of_weight.end * each) != of_values:
            return False
    return True


def _run(index: torch.Tensor, start: int, end: int) -> slice:
    """Those of a sorted index that lie from `start` to `end` - 1."""
    first, last = torch.searchsorted(index, index.new_tensor([start, end])).tolist()
    return slice(first, last)


def _placed(tensor: Any) -> str:
    return f"{tensor.placements} on {tensor.device_mesh}"
