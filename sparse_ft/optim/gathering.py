"""Gathered: what a SelectiveAdamW knows of its parameters from step to step, and those that have a
gradient as batches.
"""

import itertools
from typing import Any, NamedTuple

import torch

from ..ops._adamw_tensor import Settings
from ..parallel.dtensors import is_sharded_tensor
from .batches import Batch, linked_owner
from .origins import decays_to_origin
from .prepared import Prepared
from .settings import settings_of
from .shards import PreparedShard
from .storage import Storage

State = dict[torch.Tensor, dict[str, torch.Tensor]]  # an optimiser's, by parameter


class OfGroup(NamedTuple):
    """What the parameters of a group on one device have in common. seed: None where nothing is
    rounded by chance.
    """

    settings: Settings
    to_origin: bool
    seed: int | None


class Gathered:
    """The parameters of one optimiser. It looks at them as they are found in `groups`."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.prepared: dict[int, Prepared] = {}  # id of a parameter -> what is known of it
        self._number: dict[int, int] = {}  # id of a parameter -> its place among all

    def count(self, groups: list[dict[str, Any]]) -> None:
        """Number the parameters, as `state_dict` does."""
        params = itertools.chain.from_iterable(group["params"] for group in groups)
        self._number = {id(p): number for number, p in enumerate(params)}

    def forget(self, p: torch.Tensor) -> None:
        """Nothing is known of a parameter any more."""
        self.prepared.pop(id(p), None)

    def batches(self, groups: list[dict[str, Any]], state: State) -> list[Batch]:
        """The parameters that have a gradient, by what a call has in common."""
        batches: dict[tuple, Batch] = {}
        if not self.prepared:
            self.count(groups)  # accelerate has put others in the places of what FSDP2 has split
        for group in groups:
            device: torch.device | None = None
            batch: Batch | None = None
            for p in group["params"]:
                grad = p.grad
                if grad is None:
                    continue
                if batch is None or p.device != device:
                    device = p.device
                    of_group = self._of_group(group, device)
                    key = device, group["maximize"], of_group.settings.lr_at is None
                    batch = batches.get(key)
                    if batch is None:
                        batch = batches[key] = Batch(device, group["maximize"])
                self._add(batch, p, grad, of_group, state)
        return list(batches.values())

    def batch_of(self, p: torch.Tensor, group: dict[str, Any], state: State) -> Batch:
        """One parameter that has its gradient."""
        batch = Batch(p.device, group["maximize"])
        self._add(batch, p, p.grad, self._of_group(group, p.device), state)
        return batch

    def _of_group(self, group: dict[str, Any], device: torch.device) -> OfGroup:
        seed = group.get("seed", 0) if self.storage.stochastic_rounding else None
        return OfGroup(settings_of(group, device), decays_to_origin(group), seed)

    def _add(
        self,
        batch: Batch,
        p: torch.Tensor,
        grad: torch.Tensor | None,
        of_group: OfGroup,
        state: State,
    ) -> None:
        if grad is not None and grad.is_sparse:
            raise RuntimeError(
                "grad: SelectiveAdamW takes dense gradients, got a sparse one of shape"
                f" {tuple(p.shape)}"
            )
        prepared = self.prepared.get(id(p))
        is_new = prepared is None
        if prepared is None:
            prepared = PreparedShard(p) if is_sharded_tensor(p) else Prepared(p)
            self.prepared[id(p)] = prepared
        own = state[p]
        if own is not prepared.state or own.get("step") is not prepared.step:
            own = prepared.state = self._state_of(p, own)
            prepared.step = own["step"]
        if of_group.seed is not None:
            prepared.seed = self.storage.seed_of(p, of_group.seed, self._number[id(p)])
        prepared.settings = of_group.settings
        prepared.to_origin = of_group.to_origin
        if type(prepared) is PreparedShard:  # its module writes the weight after the step
            prepared.begin()
            batch.shards.append(prepared)
            batch.others.append(prepared)
            return
        owner = linked_owner(p)
        if owner is None:
            batch.others.append(prepared)
            return
        batch.linked.append(prepared)
        batch.owners.append(owner)
        if is_new and p.is_cpu:
            prepared.spread(owner)

    def _state_of(self, p: torch.Tensor, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not own:
            own.update(self.storage.format_of(p).new(p))  # whole or not at all
        if own["step"].device != p.device:  # a loaded one is still where its checkpoint was
            own["step"] = own["step"].to(p.device)
        return own
