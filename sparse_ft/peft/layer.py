"""SelectiveLayer: a linear layer and the adapters that replace entries of its weight."""

import weakref
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from .._torch import is_compiling, is_hooked
from ..annotations import AnyModule
from ..functional import alias, selective_product
from ..nn.linear import is_conv1d
from ..selection import Selection
from .slot import Placeholder, Slot, input_dim

_NO_BACKWARD = (
    "its backward runs while {now} is in the weight, and its forward ran with {then}: the gradient"
    " would be of another weight. Call backward before set_adapter, or set {then} again first"
)


class SelectiveLayer(nn.Module, BaseTunerLayer):
    """A linear layer of the model, `base_layer`, with a `Slot` for each adapter.

    The weight of `base_layer` holds the entries of the adapter that is shown, so that everything
    that reads it (generate, exports, merging) sees the adapter. disable_adapter, set_adapter and
    delete_adapter put the base back, bit for bit, and leave no trace in version counters: a forward
    under another adapter, or under none, may run between a forward and its backward, if the first
    adapter is back by then. A backward under another one raises RuntimeError. (A checkpoint with
    use_reentrant=True keeps nothing that could tell.)
    """

    adapter_layer_names = ("selective_slot",)
    other_param_names = ()
    base_layer: AnyModule
    selective_slot: AnyModule  # {adapter: Slot, or a Placeholder of one}
    shown: Slot | None

    def __init__(self, base_layer: nn.Module, label: str) -> None:
        """label: the module's name in the base model."""
        super().__init__()
        self.base_layer = base_layer
        self.selective_slot = nn.ModuleDict()
        self.label = label
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []
        self.__dict__["shown"] = None  # the Slot that is in the weight
        self.register_load_state_dict_pre_hook(_before_load)
        self.register_load_state_dict_post_hook(_after_load)

    # What PEFT asks of a layer.

    def add(self, name: str, selection: Selection | dict[str, Any]) -> None:
        """A new adapter. selection: or what a file says of one, whose entries are loaded next."""
        self._hide()
        if isinstance(selection, Selection):
            made: nn.Module = Slot(self.base_layer, selection, f"{self.label}.weight")
        else:
            made = Placeholder(selection, f"{self.label}.weight")
        self.selective_slot[name] = made
        self._show()

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._check_one(names)
        self._hide()
        super().set_adapter(names, inference_mode)
        self._show()

    def enable_adapters(self, enabled: bool) -> None:
        self._hide()
        if not enabled:
            self.merged_adapters.clear()
        super().enable_adapters(enabled)
        self._show()

    def delete_adapter(self, adapter_name: str) -> None:
        self._hide()
        super().delete_adapter(adapter_name)
        self._show()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Leave an adapter in the weight. safe_merge: raise ValueError for values with NaN."""
        names = check_adapters_to_merge(self, adapter_names)
        names = [name for name in names if name in self.selective_slot]
        if not names:
            return
        self._check_one([*self.merged_adapters, *names])
        slot = self._slot(names[0])
        if safe_merge and not bool(slot.values.isfinite().all()):
            raise ValueError(
                f"{self.label}: NaNs detected in the merged weights. The adapter {names[0]} seems"
                " to be broken"
            )
        self._hide()
        self._put(slot)
        self.merged_adapters.append(names[0])

    def unmerge(self) -> None:
        self.merged_adapters.clear()
        self._hide()
        self._show()

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The layer as it was, with the adapter in its weight or without."""
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            if self.shown is not None:
                self.shown.sync()
        if not (merge and self.merged):
            self._hide()
        for slot in self.selective_slot.values():
            if isinstance(slot, Slot):
                slot.leave()
        return self.base_layer

    @property
    def weight(self) -> torch.Tensor:
        """The weight of the layer, with the adapter that is active."""
        self._show()
        if self.shown is not None:
            self.shown.sync()
        return self.base_layer.weight

    # The forward.

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        slot = self.shown
        if slot is None:
            slot = self._show(is_needed=True)
        if slot is None:
            output = self.base_layer(x, *args, **kwargs)
        else:
            slot.sync()
            output = self._product(slot, x, *args, **kwargs)
        if not is_compiling() and output.grad_fn is not None:
            output.grad_fn.register_prehook(_Guard(self, slot))
        return output

    def _product(self, slot: Slot, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        base, values = self.base_layer, slot._parameters["values"]
        weight, state = base._parameters["weight"], slot._sparse_ft_state
        part: Any = state.part
        if "forward" not in base.__dict__ and not is_hooked(base):
            bias = base._parameters["bias"]
            return selective_product(x, weight, values, bias, part, input_dim(base))
        if not (torch.is_grad_enabled() and values.requires_grad):
            return base(x, *args, **kwargs)
        # Someone wants to see the layer's own call: it finds a weight whose gradient is that of the
        # values (a dense one for a moment).
        base.__dict__["weight"] = alias(weight, values, state.selection.layout, state.matrix_shape)
        try:
            return base(x, *args, **kwargs)
        finally:
            base.__dict__.pop("weight", None)

    # Which slot is in the weight.

    def _check_one(self, names: list[str]) -> None:
        here = [name for name in names if name in self.selective_slot]
        if len(set(here)) > 1:
            raise ValueError(
                f"{self.label}: {', '.join(here)}: selective adapters replace entries of the"
                " weight, so one of them is active at a time; sft.merge makes one of several"
            )

    def _slot(self, name: str) -> Slot:
        """The slot of an adapter, whose entries have been loaded by now."""
        slot = self.selective_slot[name]
        if isinstance(slot, Slot):
            return slot
        if not slot.is_filled:
            raise RuntimeError(
                f"{self.label}: the adapter {name!r} was made for the entries in a file, and none"
                " were loaded; PeftModel.from_pretrained(model, path) loads them. To choose anew,"
                " give peft a new SelectiveConfig"
            )
        self.selective_slot[name] = slot.slot(self.base_layer)
        return self.selective_slot[name]

    def _show(self, is_needed: bool = False) -> Slot | None:
        """Put the adapter that is merged, or else active, into the weight, if any is.

        is_needed: raise RuntimeError for one whose entries have not been loaded.
        """
        if self._disable_adapters or self.shown is not None:
            return self.shown
        names: Any = self.merged_adapters or self.active_adapters
        for name in names:
            if name in self.selective_slot and (is_needed or _is_filled(self.selective_slot[name])):
                self._put(self._slot(name))
        return self.shown

    def _put(self, slot: Slot) -> None:
        self.__dict__["shown"] = slot
        slot.show()

    def _hide(self) -> None:
        slot = self.shown
        if slot is not None:
            slot.hide()
            self.__dict__["shown"] = None

    def __repr__(self) -> str:
        return "selective." + super().__repr__()


def is_linear(module: nn.Module) -> bool:
    """Whether a layer may have selective adapters."""
    return type(module) is nn.Linear or is_conv1d(type(module))


class _Guard:
    """Before the backward of a layer's output: is in the weight what was there in the forward?"""

    def __init__(self, layer: SelectiveLayer, slot: Slot | None) -> None:
        self.layer, self.slot = weakref.ref(layer), slot

    def __call__(self, grad_outputs: tuple) -> None:
        layer = self.layer()
        if layer is None or layer.shown is self.slot:
            return
        then, now = (_name_of(layer, slot) for slot in (self.slot, layer.shown))
        raise RuntimeError(f"{layer.label}: {_NO_BACKWARD.format(now=now, then=then)}")


def _name_of(layer: SelectiveLayer, slot: Slot | None) -> str:
    if slot is None:
        return "the base (no adapter)"
    names = [name for name, each in layer.selective_slot.items() if each is slot]
    return f"the adapter {names[0]!r}" if names else "an adapter that was deleted"


def _before_load(layer: SelectiveLayer, state_dict: dict, prefix: str, *_: Any) -> None:
    """A weight is loaded as the base. One that was saved with an adapter in it is put right after.

    Of the slots, the one that was in the weight saved what it replaced.
    """
    layer._hide()
    layer.__dict__["loaded_base"] = None
    if prefix + "base_layer.weight" not in state_dict:
        return
    for name in layer.selective_slot:
        base = state_dict.get(f"{prefix}selective_slot.{name}.base")
        if base is not None:
            layer.__dict__["loaded_base"] = name, base


def _after_load(layer: SelectiveLayer, _: Any) -> None:
    loaded = layer.__dict__.pop("loaded_base", None)
    if loaded is not None:
        name, base = loaded
        layer._slot(name).put_back(base)
    layer._show()


def _is_filled(slot: AnyModule) -> bool:
    return isinstance(slot, Slot) or slot.is_filled
