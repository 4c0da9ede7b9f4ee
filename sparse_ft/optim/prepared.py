"""Prepared: a parameter as the steps of a SelectiveAdamW know it, checked once."""

import itertools
from typing import Any

import torch

from .._torch import is_undisturbed
from ..nn.origin import origin_of
from ..ops import _native
from ..ops._adamw_native import NativeCall, native_settings
from ..ops._adamw_state import StateFormat
from ..ops._adamw_tensor import AdamWTensor, Settings
from ..ops._library import memory_of
from .pages import use_huge_pages

Tensors = tuple[torch.Tensor, ...]
# What the compiled part tells in the place of a gradient's address.
NOWHERE = -1  # it does not lie as its parameter
CHANGED = -2  # the parameter is not as it was when it was prepared


class Prepared:
    """One parameter. `state`, `seed` and `settings` are given anew at every step.

    What the compiled part knows of it (`known`) stays while the tensors stay where they are, which
    `lying` tells. The module that owns the values is an argument: an optimiser does not keep
    modules alive.
    """

    settings: Settings

    __slots__ = (
        "parameter", "state", "step", "seed", "settings", "to_origin", "known", "lying", "stamp",
        "_seed", "_selection", "_index_version", "_writes", "_alive",
    )  # fmt: skip

    def __init__(self, parameter: torch.Tensor) -> None:
        self.parameter = parameter
        self.state: dict[str, torch.Tensor] = {}
        self.step: torch.Tensor | None = None  # of the state
        self.seed: int | None = None
        self.to_origin = False  # whether weight decay pulls there
        self.known: Any = None  # `StateFormat.native` of it; None: the compiled part takes it not
        self.lying: Any = None  # None until `known` is true
        self.stamp: Any = None  # what the module knew when its weight last showed the values
        self._seed: int | None = None
        self._selection: Any = None
        self._index_version = 0
        self._writes = 0
        self._alive: tuple | None = None

    def tensor(self, owner: Any) -> AdamWTensor:
        """All of it by name."""
        state = self.state
        grad: Any = self.parameter.grad  # what steps has one
        t = AdamWTensor(
            value=self.parameter.detach(),
            grad=grad,
            exp_avg=state["exp_avg"],
            exp_avg_sq=state["exp_avg_sq"],
            step=state["step"],
            settings=self.settings,
            correction=state.get("correction"),
            exp_avg_absmax=state.get("exp_avg_absmax"),
            exp_avg_sq_absmax=state.get("exp_avg_sq_absmax"),
            generation=state.get("generation"),
            births=state.get("births"),
            seed=self.seed,
        )
        if owner is not None:
            t.weight = owner._matrix()
            t.layout = owner._sparse_ft_state.selection.layout
            t.factor = owner._sparse_ft_state.factor
        if self.to_origin:
            t.origin = origin_of(self.parameter)
        return t

    def tensors(self, owner: Any) -> Tensors:
        """What `known` is made of. What a step writes comes first.

        Forgets `known` where something else has changed that it was made of.
        """
        if self.seed != self._seed:
            self.lying = None
        if owner is None:
            found = (self.parameter, *self.state.values())
            self._writes = len(found)
        else:
            of_owner = owner._sparse_ft_state
            selection = of_owner.selection
            is_same = selection is self._selection
            if not is_same or of_owner.tracked._version != self._index_version:
                self.lying = None
            found = (self.parameter, *self.state.values(), owner._weight(), selection.index)
            self._writes = len(found) - 1
            if of_owner.factor is not None:
                found += (of_owner.factor,)
        if self.to_origin:
            origin = origin_of(self.parameter)
            if origin is not None:
                found += (origin,)
        return found

    def prepare(self, owner: Any, tensors: Tensors) -> bool:
        """Let the compiled part know `tensors`; False where it does not take them."""
        self.known = self.lying = self.stamp = None
        t = self.tensor(owner)
        if not memory_of(tensors):
            return False
        self.known = StateFormat.of(t).native(t)
        if self.known is None:
            return False
        self._seed = self.seed
        self._selection, self._index_version = None, 0
        if owner is not None:
            self._selection = owner._sparse_ft_state.selection
            self._index_version = owner._sparse_ft_state.tracked._version
        self._alive = t.factor, t.origin, self._selection  # what is known by its address
        self.lying = _native.C.Lying(tensors)
        return True

    def look(self, owner: Any, written: list[torch.Tensor]) -> int:
        """As `_native.C.look_at_rows` tells of it, also of one that was never prepared or changed
        since; NOWHERE where the compiled part does not take it.
        """
        tensors = self.tensors(owner)
        if _native.C.rows_that_moved([self.lying], [tensors]) and not self.prepare(owner, tensors):
            return NOWHERE
        written += tensors[: self._writes]
        (address,) = _native.C.gradient_addresses([self.lying], [self.parameter.grad], torch.Tensor)
        return address

    def spread(self, owner: Any) -> None:
        """Move weight, values and moments into huge pages where that pays: they have come to
        stay.
        """
        if _native.C is None or not is_undisturbed():
            return
        if self.prepare(owner, self.tensors(owner)):
            state = self.state
            streams = [tensor for name, tensor in state.items() if name != "step"]
            kind = owner._sparse_ft_state.selection.kind
            use_huge_pages(kind, owner._weight(), self.parameter, *streams)


def native_call_of(
    linked: list[Prepared],
    owners: list[Any],
    others: list[Prepared],
    addresses: list[int] | None = None,
    written: list[torch.Tensor] | None = None,
) -> NativeCall | None:
    """One call on parameters of one device; None unless the compiled part takes them all.

    linked: the values of the modules `owners`. others: parameters that train whole. addresses: of
    all gradients, CHANGED where not known; written: what the step changes of those that are known;
    None: nothing is known.
    """
    if _native.C is None or not is_undisturbed():
        return None
    rows = [*linked, *others]
    if addresses is None or written is None:
        written = []
        addresses = _native.C.look_at_rows(Prepared, torch.Tensor, rows, owners, written)
    if CHANGED in addresses:
        owned = [*owners, *itertools.repeat(None, len(others))]
        for i, address in enumerate(addresses):
            if address == CHANGED:
                addresses[i] = rows[i].look(owned[i], written)
                if addresses[i] == NOWHERE:
                    return None
    if NOWHERE in addresses:
        return None
    known, settings = _native.C.known_of(rows, native_settings)
    return NativeCall(tensors=known, grads=addresses, settings=settings, written=written)
