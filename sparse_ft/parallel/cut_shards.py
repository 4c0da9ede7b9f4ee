"""CutShards: `Shards` of a weight that tensor parallel had cut before FSDP2 split it (2-D meshes).

A rank's part of the weight is a rectangle of its matrix; of the values it has the rows that FSDP2
gave it, and so have all ranks that differ in tensor parallel alone.
"""

from typing import Any

import torch
from torch import distributed
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate

from .. import ops
from ..ops.layout import Layout
from ..selection import Selection
from .dtensors import local_of, split_of
from .portion import Portion, portion_of, rectangle_of
from .shards import Shards


class CutPart:
    """A `shards.Part`, of a portion."""

    source = "all values"  # which are gathered first

    def __init__(self, portion: Portion) -> None:
        self.portion = portion
        self.shape = portion.shape

    @property
    def layout(self) -> Layout:
        assert self.portion.selection is not None
        return self.portion.selection.layout

    def of(self, values: torch.Tensor) -> torch.Tensor:
        return self.portion.take(values)


class CutShards(Shards):
    """Of DTensors on a mesh of two dimensions or more."""

    part: Any

    @classmethod
    def of(
        cls, label: str, weight: Any, values: Any, selection: Selection, shape: tuple[int, int]
    ) -> "CutShards":
        """Raises ValueError, naming the weight, where FSDP2 has split values in another way."""
        split = split_of(values)
        if split is None:
            raise ValueError(
                f"{label}: its values are placed as {values.placements} on {values.device_mesh};"
                " selected entries train where fully_shard splits them along dimension 0 (leave"
                " shard_placement_fn out)"
            )
        part: Any = CutPart(portion_here(selection, shape, weight))
        return cls(label, weight, values, selection, shape, split, part)

    def read_(self) -> None:
        whole = gather_values(self.selection, self.shape, self.weight, self.values.dtype)
        span = self.split.span(whole.size(0))
        local_of(self.values).copy_(whole[span.start : span.end])

    def differing(self) -> int:
        counted = torch.tensor(self._differing_here(), device=local_of(self.weight).device)
        for dim in range(self.weight.device_mesh.ndim):
            distributed.all_reduce(counted, group=self.weight.device_mesh.get_group(dim))
        return int(counted)


def portion_here(selection: Selection, shape: tuple[int, int], weight: Any) -> Portion:
    """What of a selection, on the matrix of `shape`, lies in this rank's part of a DTensor."""
    chunks = weight.__create_chunk_list__()  # as torch's checkpoints ask for it
    if not chunks:
        raise RuntimeError("mesh: this process is not in the mesh of the weight")
    here = rectangle_of(weight.shape, chunks[0].offsets, chunks[0].sizes, shape)
    return portion_of(selection, shape, here)


def gather_values(
    selection: Selection, shape: tuple[int, int], weight: Any, dtype: torch.dtype
) -> torch.Tensor:
    """What the DTensor `weight`, a matrix of `shape`, has at the selected entries. On all ranks
    together.

    Each gives what it holds, as bits, whose sum is them bit for bit (-0.0, too).
    """
    portion = portion_here(selection, shape, weight)
    bits = torch.int64 if weight.dtype == torch.float64 else torch.int32
    wide = torch.promote_types(weight.dtype, torch.float32)
    whole = torch.zeros(selection.values_shape(shape), dtype=wide, device=weight.device)
    if portion.selection is not None:
        matrix = local_of(weight).view(portion.shape)
        portion.put(ops.gather_selected(matrix, portion.selection.layout, dtype=wide), whole)
    given: list[Placement] = [
        Replicate() if at.is_replicate() else Partial() for at in weight.placements
    ]
    shares = DTensor.from_local(whole.view(bits), weight.device_mesh, given, run_check=False)
    summed = shares.redistribute(placements=[Replicate() for _ in given]).to_local()
    waiting: Any = getattr(summed, "wait", None)  # of a collective that is under way
    return (summed if waiting is None else waiting()).view(wide).to(dtype)
