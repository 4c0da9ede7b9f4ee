"""Parameters that FSDP2 has split over the ranks: a step sees this rank's part of each.

State stays a DTensor, so that checkpoints can put it on another number of ranks.
"""

from typing import Any

import torch
from torch import distributed

from ..nn.origin import origin_of
from ..nn.steps import owner_of
from ..ops._adamw_tensor import AdamWTensor
from ..parallel.dtensors import is_sharded_tensor, local_of, over_ranks, split_of
from .prepared import Prepared, Tensors


class PreparedShard(Prepared):
    """Of a DTensor. `parameter` is this rank's part of it, with its part of the gradient between
    `begin` and `end`.
    """

    __slots__ = ("whole", "split")

    def __init__(self, whole: Any) -> None:
        if any(placement.is_partial() for placement in whole.placements):
            raise ValueError(
                f"params: one of shape {tuple(whole.shape)} is placed as {whole.placements}, a sum"
                " that was not taken; redistribute it first"
            )
        super().__init__(local_of(whole))
        # None where tensor parallel has cut it, too
        self.whole, self.split = whole, split_of(whole)

    def begin(self) -> None:
        """Take this rank's part of the gradient, and of the state, which is the DTensor's until
        then.
        """
        own = local_of(self.whole)
        if own.data_ptr() != self.parameter.data_ptr():  # moved, or loaded anew
            self.parameter = own
        grad = self.whole.grad
        if is_sharded_tensor(grad) and grad.placements != self.whole.placements:
            grad = grad.redistribute(placements=self.whole.placements)  # tensor parallel's: a sum
        self.parameter.grad = local_of(grad)
        self.state = {name: local_of(tensor) for name, tensor in self.state.items()}

    def end(self) -> None:
        """Let go of the gradient."""
        self.parameter.grad = None

    def tensor(self, owner: Any) -> AdamWTensor:
        to_origin, self.to_origin = self.to_origin, False
        try:
            t = super().tensor(None)  # the weight shows its part of the values after the step
        finally:
            self.to_origin = to_origin
        owner = owner_of(self.whole)
        if self.split is None:  # trains whole: it has no factor
            if to_origin:
                raise ValueError(
                    f"decay_to: 'origin' is not supported for a parameter that is placed as"
                    f" {self.whole.placements}; use decay_to='zero'"
                )
            return t
        span = self.split.span(self.whole.size(0))
        origin = origin_of(self.whole) if to_origin else None
        if origin is not None:
            t.origin = local_of(origin[span.start : span.end])
        factor = None if owner is None else owner._sparse_ft_state.factor
        if factor is not None:
            t.factor = factor[span.start : span.end] if factor.dim() else factor
        return t

    def tensors(self, owner: Any) -> Tensors:
        if self._is_cut_at_each_step():
            self.lying = None
        return super().tensors(None)

    def prepare(self, owner: Any, tensors: Tensors) -> bool:
        """False where an origin or a factor would have to be cut for it at each step."""
        if self._is_cut_at_each_step():
            return False
        return super().prepare(None, tensors)

    def _is_cut_at_each_step(self) -> bool:
        owner = owner_of(self.whole)
        has_factor = owner is not None and owner._sparse_ft_state.factor is not None
        return self.to_origin or has_factor


def found_anywhere(found_inf: torch.Tensor, shards: list[PreparedShard]) -> torch.Tensor:
    """What tells to skip a step, if it tells so on any rank: all skip alike."""
    for split in {shard.split for shard in shards if shard.split is not None}:
        found_inf = over_ranks(found_inf, split, distributed.ReduceOp.MAX)
    for mesh in {shard.whole.device_mesh for shard in shards if shard.split is None}:
        found_inf = found_inf.clone()
        for dim in range(mesh.ndim):
            distributed.all_reduce(found_inf, distributed.ReduceOp.MAX, mesh.get_group(dim))
    return found_inf
