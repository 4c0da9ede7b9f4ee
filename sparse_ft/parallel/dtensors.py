"""DTensors: what of them lies on this rank, and all of several of them in one collective."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import distributed

# Bytes that one collective brings: enough that its latency does not count, and little beside a
# layer.
BATCH = 1 << 26


def is_sharded_tensor(tensor: Any) -> bool:
    """Whether it is a DTensor: FSDP2 (`fully_shard`), tensor parallel, `distribute_tensor`."""
    module = sys.modules.get("torch.distributed.tensor")  # nobody has met one before it is imported
    return module is not None and isinstance(tensor, module.DTensor)


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """What of a tensor lies on this rank, without its gradient: itself unless it is a DTensor."""
    if not is_sharded_tensor(tensor):
        return tensor
    whole: Any = tensor.detach()
    return whole.to_local()


def address_of(tensor: torch.Tensor) -> int:
    """Where its numbers begin on this rank; 0 without memory.

    `data_ptr()` of a DTensor is a number that several of them share.
    """
    return local_of(tensor).data_ptr()


def lasting(weight: torch.Tensor | None) -> torch.Tensor | None:
    """A small weight, for who reads it in the backward of another layer.

    A copy where FSDP2 may have gathered it: it frees what it gathered for a layer between the
    forward and the backward of that layer.
    """
    if weight is None or "torch.distributed.fsdp" not in sys.modules:
        return weight
    is_alone = not (distributed.is_available() and distributed.is_initialized())
    return weight if is_alone else weight.detach().clone()


class Span(NamedTuple):
    """Numbers `start` to `end` - 1 along dimension 0."""

    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


class Split(NamedTuple):
    """Dimension 0 is split over the `size` ranks of a `group`, of which this is number `rank`.

    size: 1 where each rank has all of it; group is None then. device: where the group communicates.
    """

    size: int
    rank: int
    group: Any
    device: str

    def span(self, length: int, rank: int | None = None) -> Span:
        """What of `length` a rank has, as `torch.chunk` splits it. rank: this one unless given."""
        number = self.rank if rank is None else rank
        each = math.ceil(length / self.size)
        return Span(min(number * each, length), min((number + 1) * each, length))


def split_of(tensor: Any) -> Split | None:
    """How a DTensor is split: over one dimension of its mesh along its own dimension 0, and whole
    along the others.

    That is what FSDP2 makes, on meshes of one dimension and with replicas (HSDP). None for any
    other.
    """
    from torch.distributed.tensor import Shard

    mesh = tensor.device_mesh
    split = None
    for dim, placement in enumerate(tensor.placements):
        if placement.is_replicate():
            continue
        if type(placement) is not Shard or placement.dim != 0 or split is not None:
            return None
        split = Split(
            mesh.size(dim), mesh.get_local_rank(dim), mesh.get_group(dim), mesh.device_type
        )
    return split or Split(1, 0, None, mesh.device_type)


def whole_of(tensors: Sequence[Any], splits: Sequence[Split]) -> Iterator[torch.Tensor]:
    """Each of the DTensors whole, on the device of its part, in order. Every rank calls it with the
    same ones.

    One collective brings as many as BATCH bytes hold, of one dtype and group.
    """
    start = 0
    while start < len(tensors):
        end, total = start, 0
        while end < len(tensors):
            total += tensors[end].numel() * tensors[end].element_size()
            is_like = _key(tensors[end], splits[end]) == _key(tensors[start], splits[start])
            if end > start and (total > BATCH or not is_like):
                break
            end += 1
        yield from _gathered(tensors[start:end], splits[start])
        start = end


def _key(tensor: torch.Tensor, split: Split) -> tuple:
    return tensor.dtype, split


def _gathered(tensors: Sequence[Any], split: Split) -> Iterator[torch.Tensor]:
    parts = [local_of(tensor) for tensor in tensors]
    if split.size == 1:
        yield from parts
        return
    # Each rank sends as much as the first one, which has the most.
    # Not `t[:1].numel()`: a slice of a DTensor is an all-gather of it.
    counts = [split.span(t.size(0), 0).length * t.shape[1:].numel() for t in tensors]
    sent = torch.zeros(sum(counts), dtype=parts[0].dtype, device=split.device)
    for place, part in zip(sent.split(counts), parts):
        place[: part.numel()].copy_(part.reshape(-1))
    received = sent.new_empty(split.size * sent.numel())
    _all_gather()(received, sent, group=split.group)
    by_rank = received.view(split.size, -1).split(counts, dim=1)
    for tensor, part, columns in zip(tensors, parts, by_rank):
        flat = columns.reshape(-1)[: tensor.numel()]  # only the last ranks have less than the first
        yield flat.view(tensor.shape).to(part.device)


def _all_gather() -> Callable:
    """torch's, by the name that it has from 2.13 on, or by the one before."""
    return getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor


def over_ranks(tensor: torch.Tensor, split: Split, op: Callable | Any) -> torch.Tensor:
    """`tensor` reduced over the ranks of a split by `op` of torch.distributed; a copy."""
    if split.size == 1:
        return tensor
    reduced = tensor.detach().to(split.device, copy=True)
    distributed.all_reduce(reduced, op=op, group=split.group)
    return reduced.to(tensor.device)
