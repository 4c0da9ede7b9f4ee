"""Batch: the parameters that one call of a step is about."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch

from ..nn.steps import owner_of
from ..ops import _native, masked_adamw_
from ..ops._adamw_call import Call, arguments_of
from ..ops._adamw_native import NativeCall, step_on_cpu_, step_on_cuda_
from ..ops._adamw_tensor import Flags
from .prepared import CHANGED, Prepared, native_call_of
from .shards import PreparedShard


@dataclasses.dataclass(slots=True)
class Batch:
    """What one call steps on: parameters on one device, in one direction."""

    device: torch.device
    maximize: bool
    linked: list[Prepared] = dataclasses.field(default_factory=list)
    # Of `linked` the modules, their `State`s and the weights that a step writes.
    owners: list[Any] = dataclasses.field(default_factory=list)
    states: list[Any] = dataclasses.field(default_factory=list)
    weights: list[Any] = dataclasses.field(default_factory=list)
    others: list[Prepared] = dataclasses.field(default_factory=list)
    shards: list[PreparedShard] = dataclasses.field(default_factory=list)  # they are in `others`
    # Where the gradients of `linked` and `others` lie, CHANGED where that is not known yet.
    linked_at: list[int] = dataclasses.field(default_factory=list)
    others_at: list[int] = dataclasses.field(default_factory=list)
    written: list[torch.Tensor] = dataclasses.field(default_factory=list)  # of all but those

    def add(self, prepared: Prepared, owner: Any = None) -> None:
        """owner: the module whose weight the step writes through."""
        if owner is None:
            self.others.append(prepared)
            self.others_at.append(CHANGED)
            return
        self.linked.append(prepared)
        self.owners.append(owner)
        self.states.append(owner._sparse_ft_state)
        self.weights.append(owner._weight_or_none())
        self.linked_at.append(CHANGED)

    def parameters(self) -> list[torch.Tensor]:
        return [prepared.parameter for prepared in (*self.linked, *self.others)]

    def gradients(self) -> list[torch.Tensor]:
        return [p.grad for p in self.parameters() if p.grad is not None]

    def call(self, flags: Flags) -> Call:
        """For who asks for each tensor by name."""
        linked = [prepared.tensor(owner) for prepared, owner in zip(self.linked, self.owners)]
        return Call(linked + [prepared.tensor(None) for prepared in self.others], flags)

    def step(
        self,
        found_inf: torch.Tensor | None = None,
        grad_scale: torch.Tensor | None = None,
        look: bool = False,
    ) -> None:
        """look: at the gradients first, and set found_inf if one is not finite. Scalars: of a
        GradScaler, on any device.
        """
        flags = Flags(
            maximize=self.maximize,
            grad_scale=_on(self.device, grad_scale),
            found_inf=_on(self.device, found_inf),
            skip_nonfinite=look,
        )
        if found_inf is not None:
            for owner in self.owners:
                owner.sync()  # a skipped step writes nothing, yet the weights count as shown below
        native = None
        if self.device.type == "cpu" or _is_served_cuda(self.device):
            native = self._native_call(is_synced=found_inf is not None)
        if native is None:
            self._step_by_name(flags)
        elif self.device.type == "cpu":
            step_on_cpu_(native, flags)
        else:
            step_on_cuda_(native, flags, self.device)
        self._mark_stepped(knows_tensors=native is not None)
        for shard in self.shards:
            shard.end()

    def _mark_stepped(self, knows_tensors: bool) -> None:
        """The weights of `linked` show their values now. knows_tensors: where a row kept what it
        found at a step before, values, weight and index are the tensors that they were.
        """
        left: Iterable[int] = range(len(self.linked))
        if knows_tensors:
            left = _native.C.mark_rows(self.linked, self.states, self.weights)
        for i in left:
            self.linked[i].stamp = self.owners[i]._mark_stepped()

    def _native_call(self, is_synced: bool) -> NativeCall | None:
        """None where the compiled part does not take it. is_synced: the weights may have changed
        since their rows were added.
        """
        addresses = None if is_synced else [*self.linked_at, *self.others_at]
        written = None if is_synced else self.written
        return native_call_of(self.linked, self.owners, self.others, addresses, written)

    def _step_by_name(self, flags: Flags) -> None:
        """By the op, which finds who serves these tensors."""
        positional, keywords = arguments_of(self.call(flags))
        masked_adamw_(*positional, **keywords)


def _is_served_cuda(device: torch.device) -> bool:
    return device.type == "cuda" and _native.serves(device)


def _on(device: torch.device, scalar: torch.Tensor | None) -> torch.Tensor | None:
    return scalar if scalar is None else scalar.to(device)


def linked_owner(p: torch.Tensor) -> Any:
    """The owner whose weight this step can write through into, or None (its module then scatters
    before its next forward).
    """
    owner = owner_of(p)
    if owner is None or not owner.has_cache:
        return None
    weight = owner._weight_or_none()
    if weight is None:
        return None
    number = p.get_device()  # in a third of the time of two devices that are compared
    if number >= 0 or p.is_cpu and weight.is_cpu:
        return owner if weight.get_device() == number else None
    return owner if weight.device == p.device else None
