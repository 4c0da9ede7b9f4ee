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

import torch
from torch import nn

from .. import ops
from .._torch import is_compiling, is_transformed
from .apart import as_matrix, same_entries_on, warn_of_loss, warn_of_resize, why_apart, write_across
from .foreign import FLOATS, is_sharded_tensor, unswapped, why_managed, why_not
from .state import NAME, FromState, Held, Stamp, State
from .steps import disown, own


def is_shown(state, values, weight):
    """Whether nothing has touched values, weight or selection of a module since one showed the
    other: `Selected._stamp`, term by term.

    state: the module's `State`. Every forward asks, and a module takes 0.2 µs for each attribute
    that is read from itself.
    """
    shown = state.shown
    return (
        shown is not None
        and values._version == shown.values_version and weight._version == shown.weight_version
        and values.data_ptr() == shown.values_address and weight.data_ptr() == shown.weight_address
        and values.dtype is shown.values_dtype and weight.dtype is shown.weight_dtype
        and state.tracked._version == shown.index_version and state.held.storage() is not None
    )  # fmt: skip


class Selected(nn.Module):
    """Mixin: a `State` with the `selection`, `values` (the Parameter that trains) and a weight that
    shows it.

    A subclass says where the weight is: `_weight()`.
    """

    label, selection, matrix_shape = FromState(), FromState(), FromState()
    # the dimension of the matrix that meets the input, for modules that keep only the features they
    # need
    _input_dim = None

    def _begin(self, label, original=None):
        """The first step of becoming selective; `_deselect` undoes it."""
        self.__dict__[NAME] = State(label, original)

    def _weight(self):
        return self._parameters["weight"]

    def _weight_or_none(self):
        return self._parameters.get("weight")

    def _matrix(self):
        """The weight as the matrix [rows, columns] that the selection speaks of."""
        weight, state = self._weight().detach(), self._sparse_ft_state
        if weight.numel() != state.matrix_shape[0] * state.matrix_shape[1] and not is_compiling():
            self._follow(weight)
        return as_matrix(weight, state.matrix_shape, state.label)

    def _follow(self, weight):
        """Go on with a weight that was given more or fewer rows (a vocabulary), if the selected
        entries are the same ones there.
        """
        state, values = self._sparse_ft_state, self._parameters["values"]
        selection = same_entries_on(state, weight)
        if selection is None or selection.values_shape(selection.matrix_shape) != values.shape:
            return
        state.selection, state.matrix_shape, state.shown, state.resized = (
            selection,
            selection.matrix_shape,
            None,
            True,
        )
        self._link(values)
        warn_of_resize(state)

    def requires_grad_(self, requires_grad=True):
        """torch's, for all but the weight, which stays frozen.

        Who resizes a weight gives its module the flag that the weight had (transformers does): the
        first False after that is no wish to freeze `values`.
        """
        state, weight = self._sparse_ft_state, self._weight_or_none()
        keeps_values = state.resized and not requires_grad
        state.resized = False
        for name, parameter in self.named_parameters():
            if parameter is not weight and not (name == "values" and keeps_values):
                parameter.requires_grad_(requires_grad)
        return self

    def _select(self, selection, shape, values_dtype=None):
        """Become the owner of `selection` on a weight whose matrix has `shape`. values_dtype: None
        for fp32 or wider.
        """
        weight = self._weight()
        as_matrix(weight.detach(), shape)
        selection.check(shape)
        selection = selection.to(weight.device)
        dtype = values_dtype or torch.promote_types(torch.float32, weight.dtype)
        values = nn.Parameter(selection.gather(as_matrix(weight.detach(), shape), dtype=dtype))
        state = self._sparse_ft_state
        state.selection, state.matrix_shape, state.chosen_dtype = (
            selection,
            tuple(shape),
            values_dtype,
        )
        self.register_parameter("values", values)
        self._mark_shown()
        weight.requires_grad_(False)  # last: who fails before has changed nothing of the weight

    def _deselect(self):
        """Undo `_select`, as far as it got. The `State` stays, for who is interrupted and calls
        again.
        """
        self.__dict__[
            NAME
        ].selection = None  # first: it tells that the values are written back already
        disown(self)
        self._parameters.pop("values", None)

    def register_parameter(self, name, param):
        if name == "values" and param is not None:
            self._link(param)
        super().register_parameter(name, param)

    def _link(self, values):
        """Let the optimiser find this module through its values; called whenever they become
        another object.
        """
        state, dim = self._sparse_ft_state, type(self)._input_dim
        index = state.selection.index
        state.tracked = values if index.is_inference() else index  # that has no version
        if dim is not None:
            state.part = state.selection.restrict(dim, state.matrix_shape[dim])
        own(self, values)
        state.linked = values  # last: it says that all of this is done

    def __getstate__(self):
        return {**self.__dict__, NAME: self._sparse_ft_state.for_copy()}

    def __setstate__(self, state):
        super().__setstate__(state)
        if self._parameters.get("values") is not None:
            self._link(self._parameters["values"])

    def _stamp(self):
        values, weight, index = (
            self._parameters["values"],
            self._weight(),
            self._sparse_ft_state.tracked,
        )
        return Stamp(
            values._version, values.data_ptr(), values.dtype,
            weight._version, weight.data_ptr(), weight.dtype, index._version,
        )  # fmt: skip

    def _mark_shown(self):
        state, stamp = self._sparse_ft_state, self._stamp()
        held, addresses = state.held, (stamp.values_address, stamp.weight_address)
        if held is None or held.addresses != addresses or held.storage() is None:
            storage = weakref.ref(self._weight().untyped_storage())
            state.held = Held(
                addresses, storage, self._parameters["values"].detach(), weakref.ref(self._weight())
            )
        state.shown, state.suspected = stamp, None

    def after_step(self, written, reached):
        """An optimiser that holds `values` has stepped; unless it wrote the weight too, the weight
        is stale now.
        """
        values, state = self._parameters["values"], self._sparse_ft_state
        state.resized = False
        if not reached and values.requires_grad and not state.reported:
            state.reported = True
            warnings.warn(
                f"{state.label}: selected, but no gradient reached it before the optimiser's step;"
                " did the module that reads it take part in the forward, through its own"
                " forward()?",
                stacklevel=7,
            )
        if written:
            return
        state.shown = state.suspected = None
        weight = self._weight_or_none()
        if weight is not None:
            torch.autograd.graph.increment_version(
                weight
            )  # graphs that saved it are out of date, as in nn.Linear

    def after_foreign_step(self):
        """An optimiser that does not hold `values` has stepped, perhaps a copy of them that is
        written back soon.

        Nothing is written and no version moves now: the step may come between forward and backward
        of this module.
        """
        state = self._sparse_ft_state
        if state.shown is not None:
            state.suspected, state.shown = state.shown, None
        values = self._parameters.get("values")
        if not state.reported and values is not None and is_sharded_tensor(values):
            state.reported = True  # a compiled forward does not look
            warnings.warn(
                f"{state.label}: {_managed('made a DTensor (fully_shard) after sft.convert')}",
                stacklevel=6,
            )

    def sync(self, force=False):
        """Make the weight show `values` if they may differ (force: in any case). Writes the
        selected entries only.
        """
        if is_compiling():
            return self._write()
        if is_transformed() and torch.is_grad_enabled():
            raise RuntimeError(
                f"{self._sparse_ft_state.label}: selected entries do not train under torch.func"
                " transforms (grad, vmap, jvp, …); use loss.backward(), or sft.revert(model) for"
                " layers that do"
            )
        state = self._sparse_ft_state
        self._check_unmanaged(state)
        try:
            self._show(state, force)
        except (IndexError, KeyError, RuntimeError, ValueError):
            why = why_apart(state, self._parameters.get("values"), self._weight_or_none())
            if why is None:
                raise
            raise ValueError(
                f"{state.label}: {why}; sft.revert(model), then convert again"
            ) from None

    def _check_unmanaged(self, state):
        values, weight, held = self._parameters.get("values"), self._weight_or_none(), state.held
        if values is None or weight is None:
            return
        are_known = values is state.linked or held is None or held.weight() is weight
        why = why_managed(values, weight, are_known)
        if why is not None:
            raise RuntimeError(f"{state.label}: {_managed(why)}")

    def _show(self, state, force):
        quietly, last = False, state.shown or state.suspected
        if not force and last is not None:
            if is_shown(state, self._parameters["values"], self._weight()):
                return
            stamp = self._stamp()
            quietly = stamp == state.suspected
            if not quietly and stamp.same_values(last):
                self._warn_if_overwritten()
        elif isinstance(self._parameters["values"], nn.Parameter):
            self._settle()  # an `_apply` that failed did not come to that
        self._write(quietly)
        self._mark_shown()

    def _write(self, quietly=False):
        """quietly: no version moves, as none did when somebody wrote the values, if so: a backward
        may be pending.
        """
        values, state = self._parameters["values"], self._sparse_ft_state
        matrix = as_matrix(self._weight().data, state.matrix_shape) if quietly else self._matrix()
        with torch.no_grad():
            ops.scatter_selected_(matrix, values.detach(), *state.selection.layout)

    def write_back(self):
        """The last `sync`, before the values go. Whatever somebody did to the module: what has no
        place is lost with a warning.
        """
        state, values, weight = (
            self._sparse_ft_state,
            self._parameters.get("values"),
            self._weight_or_none(),
        )
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

    def _warn_if_overwritten(self):
        """The weight was written or replaced, and by nothing that we know of: say so if selected
        entries differ.
        """
        values, matrix, state = (
            self._parameters["values"].detach(),
            self._matrix(),
            self._sparse_ft_state,
        )
        selection = state.selection
        wanted = ops.gather_selected(selection.scatter_(matrix.clone(), values), *selection.layout)
        if not torch.allclose(
            ops.gather_selected(matrix, *selection.layout), wanted, rtol=0, atol=0, equal_nan=True
        ):
            warnings.warn(
                f"{state.label}: selected entries were changed behind the module's back; `values`"
                " is the authority and overwrites them. Edit `values`, or load a state_dict that"
                " has no values.",
                stacklevel=3,
            )

    def _apply(self, fn, recurse=True):
        """torch's, which goes from tensor to tensor and may fail between two. `values` go with the
        others, none is taken out.
        """
        values, state = self._parameters.get("values"), self._sparse_ft_state
        state.shown = state.suspected = state.held = (
            None  # first: who looks after a failure finds nothing that counts as shown
        )
        if values is None:
            return super()._apply(fn, recurse)
        kept = values, values.grad

        def keeping_precision(tensor):
            if any(tensor is own for own in kept):
                return _keep_precision(fn, tensor, state.chosen_dtype)
            return fn(tensor)

        with unswapped():
            super()._apply(keeping_precision, recurse)
        self._settle()
        return self

    def _settle(self):
        """Bring the selection to the device of `values`, and link them if they are another object.
        Does no harm again.
        """
        values, state = self._parameters["values"], self._sparse_ft_state
        selection = state.selection.to(values.device)
        if selection is not state.selection or state.linked is not values:
            state.selection = selection
            self._link(values)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        self.sync()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _keys(self, prefix: str) -> tuple[str, str]:
        """Where a state_dict holds the weight and the values, if its keys for this module begin
        with `prefix`.
        """
        return prefix + "weight", prefix + "values"

    def _weight_is_in(self, state_dict, prefix):
        return self._keys(prefix)[0] in state_dict

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing_keys, *rest):
        """`values` wins where it is loaded; a checkpoint with the weight alone is where values come
        from.
        """
        with unswapped():
            super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing_keys, *rest)
        key = prefix + "values"
        if key not in state_dict and self._weight_is_in(state_dict, prefix):
            values = self._parameters["values"]
            with torch.no_grad():
                layout = self._sparse_ft_state.selection.layout
                values.copy_(ops.gather_selected(self._matrix(), *layout, dtype=values.dtype))
            missing_keys[:] = [k for k in missing_keys if k != key]
        self.sync(force=True)

    def _replicate_for_data_parallel(self):
        raise RuntimeError(
            f"{self._sparse_ft_state.label}: a module with selected entries does not run under"
            " nn.DataParallel (its replicas are copies that cannot be kept in step); use"
            " DistributedDataParallel"
        )


def _managed(why):
    return (
        f"{why}, and selected entries would not train right; use DistributedDataParallel, or"
        " DeepSpeed's ZeRO-1 or 2"
    )


def check_weight(label, weight, values_dtype=None):
    """Raise for a weight that cannot have selected entries (in `values_dtype`), naming it and the
    way out.
    """
    why = why_not(weight)
    if why is not None:
        raise (TypeError if weight.dtype not in FLOATS else ValueError)(f"{label}: {why}")
    if weight.is_inference() or torch.is_inference_mode_enabled():
        raise ValueError(
            f"{label}: created under inference_mode, or converted there, so nothing tells when it"
            " changes; do both outside"
        )
    if weight.device.type == "meta":
        raise ValueError(
            f"{label}: on the meta device, so it has no values to select from; load the model first"
        )
    if not weight.is_leaf:
        raise ValueError(
            f"{label}: computed from other tensors (parametrized?), not a parameter of its own"
        )
    if values_dtype is not None and torch.promote_types(values_dtype, weight.dtype) != values_dtype:
        raise TypeError(
            f"values_dtype: {values_dtype} does not hold every number of {label}, which is"
            f" {weight.dtype}; take a wider one"
        )


def _keep_precision(fn, tensor, chosen):
    """`fn` moves or casts a module's tensors; values follow to the device, and to fp64, but never
    below fp32.

    chosen: a dtype that was asked for stays; None where none was.
    """
    out = fn(tensor)
    if not out.is_floating_point() or out.dtype == tensor.dtype:
        return out
    dtype = chosen or torch.promote_types(torch.float32, out.dtype)
    return (
        torch.empty_like(out, dtype=dtype)
        if out.device.type == "meta"
        else tensor.to(out.device, dtype)
    )
