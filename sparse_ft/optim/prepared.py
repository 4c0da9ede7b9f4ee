"""Prepared: a parameter as the steps of a SelectiveAdamW know it, checked once."""

from collections.abc import Sequence
from typing import Any

import torch

from .._torch import is_undisturbed
from ..nn.origin import origin_of
from ..ops import _native
from ..ops._adamw_native import NativeCall, native_settings
from ..ops._adamw_state import StateFormat
from ..ops._adamw_tensor import AdamWTensor, Settings
from ..ops._library import plain
from .pages import use_huge_pages


class Prepared:
    """One parameter. `state`, `seed` and `settings` are given anew at every step.

    What the compiled part knows of it (`native`) stays while the tensors stay where they are. The
    module that owns the values is an argument: an optimiser does not keep modules alive.
    """

    settings: Settings

    __slots__ = (
        "parameter", "state", "seed", "settings", "to_origin",
        "_native", "_holds", "_alive", "_stride", "_dtype", "_count",
    )  # fmt: skip

    def __init__(self, parameter: torch.Tensor) -> None:
        self.parameter = parameter
        self.state: dict[str, torch.Tensor] = {}
        self.seed: int | None = None
        self.to_origin = False  # whether weight decay pulls there
        self._native: Any = None
        self._holds: list | None = None
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

    def native(self, owner: Any) -> Any:
        """What `StateFormat.native` makes of it; None where the compiled part does not take it."""
        holds = self._fingerprint(owner)
        if holds != self._holds:
            p = self.parameter
            t = self.tensor(owner)
            through = () if t.weight is None else (t.weight,)
            is_ordinary = plain((p, *self.state.values(), *through))
            self._native = StateFormat.of(t).native(t) if is_ordinary else None
            self._stride, self._dtype, self._count = p.stride(), p.dtype, p.numel()
            # what the fingerprint knows by its address
            self._alive = owner and owner._sparse_ft_state.selection, t.factor, t.origin
            self._holds = holds
        return self._native

    def _fingerprint(self, owner: Any) -> list:
        """What `native` tells of: while this is the same, so is that."""
        p = self.parameter
        holds = [p.stride(), p.dtype, p.numel(), p.data_ptr(), p.is_neg(), self.seed]
        for tensor in self.state.values():
            holds += tensor.data_ptr(), tensor.numel()
        origin = origin_of(self.parameter) if self.to_origin else None
        if origin is not None:
            holds.append(origin.data_ptr())
        if owner is not None:
            weight, of_owner = owner._weight(), owner._sparse_ft_state
            selection = of_owner.selection
            holds += weight.stride(), weight.dtype, weight.data_ptr()
            holds += id(selection), of_owner.tracked._version, selection.index.data_ptr()
            if of_owner.factor is not None:
                holds += of_owner.factor.data_ptr(), of_owner.factor.shape
        return holds

    def gradient_address(self) -> int | None:
        """Of a gradient that lies in memory as the parameter does, when `native` was last asked
        for; None for any other.
        """
        grad = self.parameter.grad
        if type(grad) is not torch.Tensor or grad.dtype != self._dtype:
            return None
        if grad.stride() != self._stride or grad.numel() != self._count or grad.is_neg():
            return None
        address = grad.data_ptr()
        if not address and self._count:  # zeros without memory
            return None
        return address

    def spread(self, owner: Any) -> None:
        """Move weight, values and moments into huge pages where that pays: they have come to
        stay.
        """
        if _native.C is not None and is_undisturbed() and self.native(owner) is not None:
            state = self.state
            streams = [tensor for name, tensor in state.items() if name != "step"]
            kind = owner._sparse_ft_state.selection.kind
            use_huge_pages(kind, owner._weight(), self.parameter, *streams)


def native_call_of(
    linked: Sequence[Prepared], owners: Sequence[Any], others: Sequence[Prepared]
) -> NativeCall | None:
    """One call on parameters in host memory; None unless the compiled part takes them all.

    linked: the values of the modules `owners`. others: parameters that train whole.
    """
    if _native.C is None or not is_undisturbed():
        return None
    call = NativeCall(tensors=[], grads=[], settings=[], written=[])
    for prepared, owner in zip(linked, owners):
        if not _add(call, prepared, owner):
            return None
        call.written.append(owner._weight())
    for prepared in others:
        if not _add(call, prepared, None):
            return None
    _add_settings(call, linked)
    _add_settings(call, others)
    return call


def _add(call: NativeCall, prepared: Prepared, owner: Any) -> bool:
    """False where the compiled part does not take it."""
    native = prepared.native(owner)
    address = None if native is None else prepared.gradient_address()
    if address is None:
        return False
    call.tensors.append(native)
    call.grads.append(address)
    call.written.append(prepared.parameter)
    call.written += prepared.state.values()
    return True


def _add_settings(call: NativeCall, parameters: Sequence[Prepared]) -> None:
    """Those of a group are one object."""
    last = native = None
    for prepared in parameters:
        if prepared.settings is not last:
            last = prepared.settings
            native = native_settings(last)
        call.settings.append(native)
