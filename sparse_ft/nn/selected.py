"""Selected: a module of which some entries of a weight train, through moves, casts, copies, saving
and loading.

What the weight shows, and when, is `showing`'s.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .. import ops
from ..functional import alias
from ..selection import Selection
from .apart import as_matrix
from .foreign import unswapped
from .loading import is_same_memory
from .sharded import forget_shards, load_shards
from .showing import Showing
from .state import NAME, State
from .steps import disown, own


class Selected(Showing):
    """Mixin: a `State` with the `selection`, `values` (the Parameter that trains) and a weight that
    shows it.

    A subclass says where the weight is: `_weight()`.
    """

    # The dimension of the matrix that meets the input, for modules that keep only the features
    # they need.
    _input_dim: int | None = None

    def _begin(self, label: str, original: type | None = None) -> None:
        """The first step of becoming selective; `_deselect` undoes it."""
        self.__dict__[NAME] = State(label, original)

    def requires_grad_(self, requires_grad: bool = True) -> "Selected":
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

    def _select(
        self,
        selection: Selection,
        shape: tuple[int, int],
        values_dtype: torch.dtype | None = None,
        origin: bool = False,
    ) -> None:
        """Become the owner of `selection` on a weight whose matrix has `shape`. values_dtype: None
        for fp32 or wider. origin: keep the selected entries as they are now.
        """
        weight = self._weight()
        selection.check(shape)
        selection = selection.to(weight.device)
        dtype = values_dtype or torch.promote_types(torch.float32, weight.dtype)
        values = nn.Parameter(self._gather(selection, shape, dtype))
        state = self._sparse_ft_state
        state.selection = selection
        state.matrix_shape = tuple(shape)
        state.chosen_dtype = values_dtype
        state.origin = self._gather(selection, shape, weight.dtype) if origin else None
        self.register_parameter("values", values)
        self._mark_shown()
        weight.requires_grad_(False)  # last: who fails before has changed nothing of the weight

    def _gather(
        self, selection: Selection, shape: tuple[int, int], dtype: torch.dtype
    ) -> torch.Tensor:
        """What the weight, a matrix of `shape`, has at the selected entries."""
        return selection.gather(as_matrix(self._weight().detach(), shape), dtype=dtype)

    def _alias(self) -> torch.Tensor:
        """The weight, whose gradient goes to `values`."""
        state = self._sparse_ft_state
        values, layout = self._parameters["values"], state.selection.layout
        return alias(self._weight(), values, layout, state.matrix_shape)

    def _deselect(self) -> None:
        """Undo `_select`, as far as it got. The `State` stays, for who is interrupted and calls
        again.
        """
        state = self.__dict__[NAME]
        state.selection = None  # first: it tells that the values are written back already
        state.origin = state.slide = state.factor = None
        disown(self)
        self._parameters.pop("values", None)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name == "values" and param is not None:
            self._link(param)
        super().register_parameter(name, param)

    def _link(self, values: nn.Parameter) -> None:
        """Let the optimiser find this module through its values; called whenever they become
        another object.
        """
        state, dim = self._sparse_ft_state, type(self)._input_dim
        index = state.selection.index
        state.tracked = values if index.is_inference() else index  # that has no version
        if dim is not None:
            state.part = state.selection.restrict(dim, state.matrix_shape[dim])
            self._prepare_product(dim, values.dtype)
        own(self, values)
        state.linked = values  # last: it says that all of this is done

    def _prepare_product(self, dim: int, dtype: torch.dtype) -> None:
        """Have ready what the gradient's product looks up: a graph that is recorded must not wait
        for it. dim: of the matrix, which meets the input. dtype: of values.
        """
        state = self._sparse_ft_state
        part: Any = state.part  # it was found just now
        features, layout = part
        shape = list(state.matrix_shape)
        if features is not None:
            shape[dim] = features.size(0)
        wide = torch.promote_types(torch.float32, dtype)
        for each in (wide, torch.bfloat16):  # of a layer by itself and under autocast
            ops.prepare_selected_wgrad(layout, tuple(shape), each)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, NAME: self._sparse_ft_state.for_copy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._parameters.get("values") is not None:
            self._link(self._parameters["values"])

    def _apply(
        self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> "Selected":
        """torch's, which goes from tensor to tensor and may fail between two. `values` go with the
        others, none is taken out.
        """
        values, state = self._parameters.get("values"), self._sparse_ft_state
        # First: who looks after a failure finds nothing that counts as shown.
        state.shown = state.suspected = state.held = None
        if values is None:
            return super()._apply(fn, recurse)
        kept = values, values.grad

        def keeping_precision(tensor: torch.Tensor) -> torch.Tensor:
            if any(tensor is own for own in kept):
                return keep_precision(fn, tensor, state.chosen_dtype)
            return fn(tensor)

        with unswapped():
            super()._apply(keeping_precision, recurse)
        if state.origin is not None:
            state.origin = _followed(fn, state.origin)
        self._settle()
        return self

    def _settle(self) -> None:
        """Bring the selection to the device of `values`, and link them if they are another object.
        Does no harm again.
        """
        values, state = self._parameters["values"], self._sparse_ft_state
        forget_shards(self)
        selection = state.selection.to(values.device)
        if selection is not state.selection or state.linked is not values:
            state.selection = selection
            self._link(values)
        if values.device.type == "meta":
            return
        if state.origin is not None:
            state.origin = state.origin.to(values.device)
        if state.factor is not None:
            state.factor = state.factor.to(values.device)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        self.sync()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _keys(self, prefix: str) -> tuple[str, str]:
        """Where a state_dict holds the weight and the values, if its keys for this module begin
        with `prefix`.
        """
        return prefix + "weight", prefix + "values"

    def _sync_to_load(self, state_dict: dict[str, Any], prefix: str) -> None:
        """The last `sync` before a state_dict is loaded: a weight that fails to load is what values
        come from.

        Where the weight alone comes, in the module's own memory, which was filled from a file
        (torch.distributed.checkpoint loads so), that is the truth, also if a `sync` has come
        between.
        """
        weight_key, values_key = self._keys(prefix)
        is_own = is_same_memory(state_dict.get(weight_key), self._weight_or_none())
        state = self._sparse_ft_state
        if values_key in state_dict or not is_own or not self._shows_these_values():
            self.sync()
        elif state.overwritten is not None:
            ops.scatter_selected_(self._matrix(), state.overwritten, state.selection.layout)

    def _weight_is_in(self, state_dict: dict[str, Any], prefix: str) -> bool:
        return self._keys(prefix)[0] in state_dict

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *rest: list[str],
    ) -> None:
        """`values` wins where it is loaded; a checkpoint with the weight alone is where values come
        from.
        """
        with unswapped():
            super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing_keys, *rest)
        key = prefix + "values"
        has_weight = self._weight_is_in(state_dict, prefix)
        if self._takes_shards():
            load_shards(self, has_weight, key in state_dict)
            missing_keys[:] = [k for k in missing_keys if not (has_weight and k == key)]
            return
        if key not in state_dict and has_weight:
            values = self._parameters["values"]
            with torch.no_grad():
                values.copy_(self._shown(values.dtype))
            missing_keys[:] = [k for k in missing_keys if k != key]
        self.sync(force=True)

    def _shown(self, dtype: torch.dtype) -> torch.Tensor:
        """The values that the weight shows, whatever size it has been given since."""
        layout = self._sparse_ft_state.selection.layout
        return ops.gather_selected(self._matrix(), layout, dtype=dtype)

    def _replicate_for_data_parallel(self) -> None:
        raise RuntimeError(
            f"{self._sparse_ft_state.label}: a module with selected entries does not run under"
            " nn.DataParallel (its replicas are copies that cannot be kept in step); use"
            " DistributedDataParallel"
        )


def _followed(fn: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` where and what `fn` makes of others; never without its numbers, as `to_empty` and a
    meta device would have it.
    """
    like = fn(tensor.new_empty(0))
    return tensor if like.device.type == "meta" else tensor.to(like.device, like.dtype)


def keep_precision(
    fn: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor, chosen: torch.dtype | None
) -> torch.Tensor:
    """`fn` moves or casts a module's tensors; values follow to the device, and to fp64, but never
    below fp32.

    chosen: a dtype that was asked for stays; None where none was.
    """
    out = fn(tensor)
    if not out.is_floating_point() or out.dtype == tensor.dtype:
        return out
    dtype = chosen or torch.promote_types(torch.float32, out.dtype)
    if out.device.type == "meta":
        return torch.empty_like(out, dtype=dtype)
    return tensor.to(out.device, dtype)
