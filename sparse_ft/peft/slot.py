"""Slot: the entries of one weight that one adapter replaces."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..annotations import AnyModule
from ..nn.foreign import check_weight
from ..nn.linear import is_conv1d
from ..nn.selected import Selected
from ..plan import describe, selection_of
from ..selection import Selection

# In a placeholder of an index: no index is negative.
UNKNOWN = -1


class Slot(Selected):
    """`values` of one adapter, and while they are shown, the `base` that they replaced.

    Of the layers of one weight at most one slot is shown at a time: its values are in the weight.
    A hidden slot leaves the weight alone, whatever optimisers do to its values.

    Showing and hiding write the weight without a trace: what a forward saved of the weight before
    is right again once the same slot is shown, and `SelectiveLayer` refuses a backward while
    another one is. Values that changed while they were hidden do leave one, as a step does.
    """

    linear: AnyModule
    base: torch.Tensor | None
    left: Any
    was_shown: bool
    values: nn.Parameter

    def __init__(self, linear: AnyModule, selection: Selection, label: str) -> None:
        """linear: the layer whose weight it is, which shows the base now. label: for messages."""
        super().__init__()
        check_weight(label, linear.weight)
        # base: what the values replaced. left: of the values, when they were hidden; None: they
        # have changed since.
        self.__dict__.update(linear=linear, base=None, left=None, was_shown=False)
        self._begin(label)
        self._select(selection, tuple(linear.weight.shape))
        self._sparse_ft_state.shown = None

    @property
    def is_active(self) -> bool:
        """Whether the weight shows the values of this slot."""
        return self.base is not None

    def _link(self, values: nn.Parameter) -> None:
        super()._link(values)
        state, dim = self._sparse_ft_state, input_dim(self.linear)
        state.part = state.selection.restrict(dim, state.matrix_shape[dim])

    def _weight(self) -> nn.Parameter:
        return self.linear._parameters["weight"]

    def _weight_or_none(self) -> nn.Parameter | None:
        """None while hidden: no optimiser writes through into a weight that shows another one."""
        return self.linear._parameters.get("weight") if self.is_active else None

    def show(self) -> None:
        """Put the values into the weight; remember what was there."""
        if self.is_active:
            return
        state = self._sparse_ft_state
        state.shown = state.suspected = None
        is_same = self.left is not None and self._stamp().same_values(self.left)
        self.__dict__["base"] = state.selection.gather(self._matrix())
        self._write(quietly=is_same or not self.was_shown)
        self.__dict__["was_shown"] = True
        self._mark_shown()

    def hide(self) -> None:
        """Put the base back, bit for bit."""
        base = self.base
        if not self.is_active or base is None:
            return
        state = self._sparse_ft_state
        last, stamp = state.shown or state.suspected, self._stamp()
        self.__dict__["left"] = stamp if last is not None and stamp.same_values(last) else None
        # An interrupt from here on leaves an active slot whose next `sync` shows it again.
        state.shown = state.suspected = None
        self._scatter_quietly(base)
        self.__dict__["base"] = None

    def put_back(self, base: torch.Tensor) -> None:
        """Write what values of this slot replaced to a weight that was loaded with them."""
        self._scatter_quietly(base)

    def _scatter_quietly(self, entries: torch.Tensor) -> None:
        matrix = self._weight().data
        self._sparse_ft_state.selection.scatter_(matrix, entries.to(matrix.device, matrix.dtype))

    def leave(self) -> None:
        """End as a slot: the weight keeps what it shows, the values go."""
        self._deselect()
        self.__dict__["base"] = None

    def sync(self, force: bool = False) -> None:
        if self.is_active:
            super().sync(force)

    def after_step(self, written: bool, reached: bool) -> None:
        if self.is_active:
            super().after_step(written, reached)
        else:
            self.__dict__["left"] = None  # fused optimisers leave the version of values unmoved

    def _apply(self, fn: Callable, recurse: bool = True) -> "Slot":
        super()._apply(fn, recurse)
        if self.base is not None:
            self.__dict__["base"] = fn(self.base)
        return self

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "index"] = self._sparse_ft_state.selection.index
        if self.base is not None:
            destination[prefix + "base"] = self.base

    def _load_from_state_dict(  # type: ignore[override]  # torch gives all seven by position
        self,
        state_dict: dict,
        prefix: str,
        metadata: dict,
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        """torch's; values of another selection are refused before any is taken."""
        index = state_dict.get(prefix + "index")
        own = self._sparse_ft_state.selection.index
        if index is not None and not _same(index, own):
            errors.append(
                f"{self._sparse_ft_state.label}: {prefix}index is of another selection"
                f" {tuple(index.shape)} than the one that trains here {tuple(own.shape)}; delete"
                " this adapter first, or load under another adapter's name"
            )
            return
        self.__dict__["left"] = None
        nn.Module._load_from_state_dict(
            self, state_dict, prefix, metadata, strict, missing, unexpected, errors
        )
        known = (prefix + "index", prefix + "base")
        unexpected[:] = [key for key in unexpected if key not in known]


def _same(index: torch.Tensor, own: torch.Tensor) -> bool:
    return index.shape == own.shape and torch.equal(index.to(own), own)


class Placeholder(nn.Module):
    """Stands for a Slot whose entries are in a file that is loaded next, by whoever loads it.

    transformers sets parameters and buffers by their names and shapes, PEFT calls
    `load_state_dict`: both find `index` and `values` here.
    """

    index: torch.Tensor

    def __init__(self, described: dict[str, Any], label: str) -> None:
        """described: by `describe_slot`. label: for messages."""
        super().__init__()
        self.described, self.label = described, label
        index = torch.full(described["index_shape"], UNKNOWN, dtype=torch.int32)
        self.register_buffer("index", index)
        self.values = nn.Parameter(torch.zeros(described["values_shape"]))

    @property
    def is_filled(self) -> bool:
        """Whether the entries were loaded."""
        return not bool((self.index == UNKNOWN).any())

    def slot(self, linear: nn.Module) -> Slot:
        """The Slot with what was loaded, which trains the same Parameter."""
        slot = Slot(linear, selection_of(self.described, self.index), self.label)
        loaded = self.values
        loaded.data = loaded.data.to(slot.values.device, slot.values.dtype)
        slot.values = loaded
        return slot

    def _apply(self, fn: Callable, recurse: bool = True) -> "Placeholder":
        """torch's, which moves the values and does not round them."""
        return super()._apply(lambda tensor: _moved(fn, tensor), recurse)


def input_dim(linear: nn.Module) -> int:
    """The dimension of the weight of a linear layer that meets the input."""
    return 0 if is_conv1d(type(linear)) else 1


def _moved(fn: Callable, tensor: torch.Tensor) -> torch.Tensor:
    moved = fn(tensor)
    return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)


def describe_slot(slot: AnyModule) -> dict[str, Any]:
    """What `adapter_config.json` says of a slot: all but its numbers."""
    selection: Any = slot.selection
    return {
        **describe(selection.on(slot.matrix_shape)),
        "index_shape": list(selection.index.shape),
        "values_shape": list(slot.values.shape),
    }
