"""Who owns the truth about a weight with selected entries: `values` is the authority, the weight
shows a copy of it.

What can make the copy stale, and what tells:

- an optimiser stepped: torch's own post-step hook, which fires for fused and third-party optimisers
  too (`steps`);
- `values` was written in place, moved or replaced: its version, data pointer and dtype
  (`state.Stamp`);
- the weight was replaced or written by someone else: its data pointer and version.

Bare writes through `.data` leave no trace; `sft.sync` is for those that no optimiser's step goes
before.
"""

import warnings
import weakref
from typing import Any

import torch
from torch import nn

from .. import ops
from .._torch import is_compiling, is_transformed
from ..selection import Selection
from .apart import as_matrix, same_entries_on, warn_of_loss, warn_of_resize, why_apart, write_across
from .foreign import why_managed
from .sharded import check_gathered, is_split, show_shards, take_shards
from .state import FromState, Held, Stamp, State

APART = IndexError, KeyError, RuntimeError, ValueError  # what a write to a misfit raises


def is_shown(state: State, values: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether nothing has touched values, weight or selection of a module since one showed the
    other: `Showing._stamp`, term by term.

    Every forward asks, and a module takes 0.2 µs for each attribute that is read from itself.
    """
    shown = state.shown
    return (
        shown is not None
        and values._version == shown.values_version and weight._version == shown.weight_version
        and values.data_ptr() == shown.values_address and weight.data_ptr() == shown.weight_address
        and values.dtype is shown.values_dtype and weight.dtype is shown.weight_dtype
        and state.tracked._version == shown.index_version and state.held.storage() is not None
    )  # fmt: skip


class Showing(nn.Module):
    """Mixin: a weight that shows `values`, as the `State` of its module says.

    A subclass says where the weight is (`_weight`), and how the module is found by its values
    (`_link`).
    """

    # Whether the weight holds a copy of the values, which an optimiser may write.
    has_cache = True
    # Why not, and what to do instead where that is not what is done for a quantised weight.
    no_cache = "is quantised, and its codes do not hold the values that train", ""
    _sparse_ft_state: State
    _parameters: dict[str, Any]
    label, selection, matrix_shape = FromState(), FromState(), FromState()

    def _weight(self) -> nn.Parameter:
        return self._parameters["weight"]

    def _weight_or_none(self) -> Any:
        return self._parameters.get("weight")

    def _matrix(self) -> torch.Tensor:
        """The weight as the matrix [rows, columns] that the selection speaks of."""
        weight, state = self._weight().detach(), self._sparse_ft_state
        if weight.numel() != state.matrix_shape[0] * state.matrix_shape[1] and not is_compiling():
            self._follow(weight)
        return as_matrix(weight, state.matrix_shape, state.label)

    def _follow(self, weight: torch.Tensor) -> None:
        """Go on with a weight that was given more or fewer rows (a vocabulary), if the selected
        entries are the same ones there.
        """
        state, values = self._sparse_ft_state, self._parameters["values"]
        selection: Any = same_entries_on(state, weight)
        if selection is None or selection.values_shape(selection.matrix_shape) != values.shape:
            return
        state.selection = selection
        state.matrix_shape = selection.matrix_shape
        state.shown = None
        state.resized = True
        self._link(values)
        warn_of_resize(state)

    def _stamp(self) -> Stamp:
        values, weight = self._parameters["values"], self._weight()
        index = self._sparse_ft_state.tracked
        return Stamp(
            values._version, values.data_ptr(), values.dtype,
            weight._version, weight.data_ptr(), weight.dtype, index._version,
        )  # fmt: skip

    def _shows_these_values(self) -> bool:
        """Whether the weight last showed the values as they are, whoever wrote the weight since."""
        last = self._sparse_ft_state.shown
        return last is not None and self._stamp().same_values(last)

    def _mark_shown(self) -> None:
        """From now on the weight counts as showing the values, until one of them changes."""
        state, stamp = self._sparse_ft_state, self._stamp()
        held, addresses = state.held, (stamp.values_address, stamp.weight_address)
        if held is None or held.addresses != addresses or held.storage() is None:
            weight, values = self._weight(), self._parameters["values"]
            storage = weakref.ref(weight.untyped_storage())
            state.held = Held(addresses, storage, values.detach(), weakref.ref(weight))
        state.shown, state.suspected, state.overwritten = stamp, None, None

    def _mark_stepped(self) -> Stamp | None:
        """`_mark_shown`, for an optimiser that wrote values and weight. Returns what is known now,
        which the compiled part brings up to date at the next step (`mark_rows`).
        """
        self._mark_shown()
        return self._sparse_ft_state.shown

    def after_step(self, written: bool, reached: bool) -> None:
        """An optimiser that holds `values` has stepped.

        written: whether it wrote the weight too; unless it did, the weight is stale now. reached:
        whether the values had a gradient.
        """
        values, state = self._parameters["values"], self._sparse_ft_state
        state.resized = False
        if not reached and values.requires_grad and not state.reported:
            state.reported = True
            warnings.warn(
                f"{state.label}: selected, but no gradient reached it before the optimiser's step;"
                " did the module that reads it take part in the forward, through its own"
                " forward()?",
                stacklevel=8,
            )
        if written or state.shards is not None:  # who called writes those of all modules together
            return
        if state.factor is not None and not state.unscaled:
            state.unscaled = True
            warnings.warn(
                f"{state.label}: sft.scale_updates has no effect on this optimiser; use"
                " SelectiveAdamW",
                stacklevel=8,
            )
        state.shown = state.suspected = None
        weight = self._weight_or_none()
        if weight is not None:
            # Graphs that saved it are out of date, as in nn.Linear.
            torch.autograd.graph.increment_version(weight)

    usual_after_step = after_step  # by which a class that does more is known

    def after_foreign_step(self) -> None:
        """An optimiser that does not hold `values` has stepped, perhaps a copy of them that is
        written back soon.

        Nothing is written and no version moves now: the step may come between forward and backward
        of this module.
        """
        state = self._sparse_ft_state
        if state.shown is not None:
            state.suspected, state.shown = state.shown, None

    def _link(self, values: nn.Parameter) -> None:
        raise NotImplementedError

    def _settle(self) -> None:
        raise NotImplementedError

    def _is_split(self) -> bool:
        """Whether the shards of FSDP2 are in place, not what it gathers from them."""
        return is_split(self)

    def _takes_shards(self) -> bool:
        """Whether FSDP2 keeps the parameters."""
        return take_shards(self)

    def sync(self, force: bool = False) -> None:
        """Make the weight show `values` if they may differ (force: in any case). Writes the
        selected entries only.
        """
        state = self._sparse_ft_state
        if is_compiling():
            return None if state.shards is not None else self._write()
        if is_transformed() and torch.is_grad_enabled():
            raise RuntimeError(
                f"{state.label}: selected entries do not train under torch.func"
                " transforms (grad, vmap, jvp, …); use loss.backward(), or sft.revert(model) for"
                " layers that do"
            )
        if self._takes_shards():
            return show_shards(self) if force else None
        self._check_unmanaged(state)
        try:
            self._show(state, force)
        except APART:
            why = why_apart(state, self._parameters.get("values"), self._weight_or_none())
            if why is None:
                raise
            raise ValueError(
                f"{state.label}: {why}; sft.revert(model), then convert again"
            ) from None

    def sync_to_run(self) -> None:
        """`sync`, before a forward computes with the parameters as they stand."""
        self.sync()
        check_gathered(self)

    def _check_unmanaged(self, state: State) -> None:
        values, weight, held = self._parameters.get("values"), self._weight_or_none(), state.held
        if values is None or weight is None:
            return
        are_known = values is state.linked or held is None or held.weight() is weight
        why = why_managed(values, weight, are_known)
        if why is not None:
            raise RuntimeError(f"{state.label}: {_managed(why)}")

    def _show(self, state: State, force: bool) -> None:
        quietly, last, overwritten = False, state.shown or state.suspected, None
        if not force and last is not None:
            if self._is_shown(state):
                return
            stamp = self._stamp()
            quietly = stamp == state.suspected
            if not quietly and stamp.same_values(last):
                overwritten = self._warn_if_overwritten()
        elif isinstance(self._parameters["values"], nn.Parameter):
            self._settle()  # an `_apply` that failed did not come to that
        self._write(quietly)
        self._mark_shown()
        state.overwritten = overwritten

    def _is_shown(self, state: State) -> bool:
        return is_shown(state, self._parameters["values"], self._weight())

    def _write(self, quietly: bool = False) -> None:
        """quietly: no version moves, as none did when somebody wrote the values, if so: a backward
        may be pending.
        """
        values, state = self._parameters["values"], self._sparse_ft_state
        matrix = as_matrix(self._weight().data, state.matrix_shape) if quietly else self._matrix()
        with torch.no_grad():
            ops.scatter_selected_(matrix, values.detach(), state.selection.layout)

    def write_back(self) -> None:
        """The last `sync`, before the values go. Whatever somebody did to the module: what has no
        place is lost with a warning.
        """
        state = self._sparse_ft_state
        values: Any = self._parameters.get("values")
        weight = self._weight_or_none()
        if state.selection is None:
            return  # a revert that was interrupted has been here
        why = why_apart(state, values, weight)
        if why is None:
            try:
                if weight.is_contiguous() and weight.device == values.device:
                    return self.sync()
                return write_across(state, values, weight)
            except IndexError as error:  # the index was edited where no version counts it
                why = str(error)
        warn_of_loss(state.label, why)

    def _warn_if_overwritten(self) -> torch.Tensor | None:
        """The weight was written or replaced, and by nothing that we know of: say so if selected
        entries differ, and return them.
        """
        values = self._parameters["values"].detach()
        return self._warn_if_other(self._matrix(), values, self._sparse_ft_state.selection)

    def _warn_if_other(
        self, matrix: torch.Tensor, values: torch.Tensor, selection: Selection
    ) -> torch.Tensor | None:
        """What the matrix holds at the selected entries; None where that is what values are."""
        shown = selection.scatter_(matrix.clone(), values)
        wanted = ops.gather_selected(shown, selection.layout)
        there = ops.gather_selected(matrix, selection.layout)
        if torch.allclose(there, wanted, rtol=0, atol=0, equal_nan=True):
            return None
        warnings.warn(
            f"{self._sparse_ft_state.label}: selected entries were changed behind the module's"
            " back; `values` is the authority and overwrites them. Edit `values`, or load a"
            " state_dict that has no values.",
            stacklevel=4,
        )
        return there


def _managed(why: str) -> str:
    return (
        f"{why}, and selected entries would not train right; use DistributedDataParallel, or"
        " DeepSpeed's ZeRO-1 or 2"
    )
