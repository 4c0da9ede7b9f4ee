"""Gathered: what a SelectiveAdamW knows of its parameters from step to step, and those that have a
gradient as batches.
"""

import itertools
from typing import Any, NamedTuple

import torch

from ..nn.showing import Showing
from ..nn.steps import Heard, owners_by_id
from ..ops import _native
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
        self._trail: Any = None if _native.C is None else _native.C.Trail()
        self._number: dict[int, int] = {}  # id of a parameter -> its place among all

    def count(self, groups: list[dict[str, Any]]) -> None:
        """Number the parameters, as `state_dict` does."""
        params = itertools.chain.from_iterable(group["params"] for group in groups)
        self._number = {id(p): number for number, p in enumerate(params)}

    def forget(self, p: torch.Tensor) -> None:
        """Nothing is known of a parameter any more."""
        self.prepared.pop(id(p), None)

    def batches(
        self, groups: list[dict[str, Any]], state: State, heard: Heard | None = None
    ) -> list[Batch]:
        """The parameters that have a gradient, by what a call has in common. heard: is told of all
        of them.
        """
        batches: dict[tuple, Batch] = {}
        heard = heard or Heard()
        if self._trail is not None:
            self._trail.restart()
        if not self.prepared:
            self.count(groups)  # accelerate has put others in the places of what FSDP2 has split
        for group in groups:
            self._add_group(batches, group, state, heard)
        return list(batches.values())

    def _add_group(
        self, batches: dict[tuple, Batch], group: dict[str, Any], state: State, heard: Heard
    ) -> None:
        """Those of a group, most of which are as they were at the step before."""
        parameters = group["params"]
        first = next((p for p in parameters if p.grad is not None), None)
        if first is None:
            heard.others += parameters
            return
        device = first.device
        of_group = self._of_group(group, device)
        batch = _batch_among(batches, group, device, of_group)
        if _native.C is not None and of_group.seed is None and not of_group.to_origin:
            parameters = _native.C.add_rows(
                Prepared,
                self.prepared,
                state,
                owners_by_id(),
                Showing,
                parameters,
                first,
                of_group.settings,
                batch,
                heard,
                self._trail,
                torch.Tensor,
            )
        heard.others += parameters
        for p in parameters:
            grad = p.grad
            if grad is None:
                continue
            if p.device != device:
                device = p.device
                of_group = self._of_group(group, device)
                batch = _batch_among(batches, group, device, of_group)
            self._add(batch, p, grad, of_group, state)

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
            batch.add(prepared)
            return
        owner = linked_owner(p)
        batch.add(prepared, owner)
        if owner is not None and is_new and p.is_cpu:
            prepared.spread(owner)

    def _state_of(self, p: torch.Tensor, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not own:
            own.update(self.storage.format_of(p).new(p))  # whole or not at all
        if own["step"].device != p.device:  # a loaded one is still where its checkpoint was
            own["step"] = own["step"].to(p.device)
        return own


def _batch_among(
    batches: dict[tuple, Batch], group: dict[str, Any], device: torch.device, of_group: OfGroup
) -> Batch:
    """The one that parameters of `group` on `device` step in, which may be new."""
    key = device, group["maximize"], of_group.settings.lr_at is None
    batch = batches.get(key)
    if batch is None:
        batch = batches[key] = Batch(device, group["maximize"])
    return batch
