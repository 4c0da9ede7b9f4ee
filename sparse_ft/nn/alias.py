"""SelectedParameter: selected entries of a parameter that some module reads in its own way
(convolutions, MHA, LSTM, norms).

The reading module keeps its class, its state_dict keys and its pickle. While its forward runs, the
parameter's name leads to an alias of the weight whose backward reduces the dense gradient to
`values` at once: dense gradient, transient. Of a weight that holds all experts of a mixture, each
expert's gradient is made by itself (`sparse_ft.experts`). Who reads the parameter at another time
(`module.forward(x)`, a pre-hook that computes the weight from it, a parent) gets such an alias too,
by `reading.Parameters`.
"""

from typing import Any

import torch
from torch import nn

from .._torch import (
    FakeTensor,
    flat_names,
    hook_tables,
    is_compiling,
    is_eager,
    remove_hooks_of,
    set_flat_weight,
)
from ..experts import ExpertsWeight, Pieces, dry_tap, pieces_of
from ..selection import Selection
from .foreign import check_weight, is_plain, refuse_tracing
from .loading import check_loaded
from .reading import Parameters, stored
from .selected import Selected


class SelectedParameter(Selected):
    """The `values` of one parameter `name` of `owner`; a child of the owner under
    `<name>_selected`.

    reader: the module whose forward reads the parameter, mostly the owner. Its `state_dict` has one
    more key, `<name>_selected.values`, only where the weight cannot hold the values (fp32 values
    over a 16-bit weight).
    """

    owner: nn.Module
    name: str
    reader: nn.Module
    _handles: list[Any]

    def __init__(
        self,
        owner: nn.Module,
        name: str,
        selection: Selection,
        shape: tuple[int, int],
        reader: nn.Module,
        label: str,
        values_dtype: torch.dtype | None = None,
        origin: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(owner, nn.RNNBase) and flat_names(owner) is None:
            raise RuntimeError(
                f"{label}: this torch keeps the weights of recurrent modules in a way that is not"
                " known"
            )
        check_weight(label, stored(owner, name))
        self.__dict__.update(owner=owner, name=name, reader=reader, _handles=[])
        self._begin(label)
        self._select(selection, shape, values_dtype, origin)
        owner.add_module(f"{name}_selected", self)
        self._handles.append(reader.register_forward_pre_hook(self.before_forward))
        self._handles.append(reader.register_forward_hook(self.after_forward, always_call=True))
        self._handles.append(owner.register_load_state_dict_pre_hook(self._before_owner_loads))
        parameters = None if self._is_flat() else Parameters.of(owner)
        if parameters is not None:
            parameters.selected[name] = self

    def _is_flat(self) -> bool:
        """Recurrent modules read most weights from a list of their own, which must hold what is
        stored.
        """
        if not isinstance(self.owner, nn.RNNBase):
            return False
        return self.name in (flat_names(self.owner) or ())

    def _weight(self) -> nn.Parameter:
        return stored(self.owner, self.name)

    def __delattr__(self, name: str) -> None:
        if name == "values":
            raise RuntimeError(
                f"{self._sparse_ft_state.label}: its values train in its place; sft.revert(model)"
                " first"
            )
        super().__delattr__(name)

    def _weight_or_none(self) -> Any:
        return self.owner._parameters.get(self.name)  # what is stored

    @staticmethod
    def of_reader(module: nn.Module) -> "list[SelectedParameter]":
        """Those that hooks of `module` lead to, also where their owner was replaced and they are in
        no model any more.
        """
        before, _ = hook_tables(module)
        found = [getattr(hook, "__self__", None) for hook in before.values()]
        return [each for each in found if isinstance(each, SelectedParameter)]

    def before_forward(self, module: nn.Module, inputs: tuple) -> None:
        """Put the alias in the parameter's place: an instance attribute is found before a
        registered parameter.
        """
        if any(isinstance(x, torch.fx.Proxy) for x in inputs):
            refuse_tracing(self._sparse_ft_state.label, inputs)
        self.sync_to_run()
        values = self._parameters["values"]
        if not values.requires_grad:
            return
        if torch.is_grad_enabled():
            self._put(self._handed())
        elif not is_compiling():
            # Torch picks kernels by it: the bits of the original forward.
            self._put(self._weight().detach().requires_grad_())

    @property
    def by_experts(self) -> bool:
        """Whether the weight holds experts, of which each gets its gradient by itself."""
        return self._pieces() is not None

    def _handed(self) -> torch.Tensor:
        """What the reader gets: an alias, which knows experts where the weight holds several."""
        handed = self._alias()
        pieces = self._pieces() if is_eager() and is_plain(type(handed)) else None
        if pieces is None:
            return handed
        weight, values = self._weight().detach(), self._parameters["values"]
        if isinstance(weight, FakeTensor):
            return weight  # `after_forward` does the rest: it takes no other class
        return ExpertsWeight.of(handed, weight, values, pieces)

    def _pieces(self) -> Pieces | None:
        """Of each expert, what trains of it; None where the weight holds none.

        Found once for each selection.
        """
        state, weight = self._sparse_ft_state, self._weight()
        if weight.dim() != 3 or weight.size(0) in (1, state.matrix_shape[0]):
            return None  # a convolution's matrix has the first dimension as rows
        if type(self) is not SelectedParameter:
            return None  # in parts, on several devices
        known = self.__dict__.get("_known_pieces")
        if known is None or known[0] is not state.selection:
            experts, rows, columns = weight.shape
            known = state.selection, pieces_of(state.selection, (experts, rows, columns))
            self.__dict__["_known_pieces"] = known
        return known[1]

    def __getstate__(self) -> dict[str, Any]:
        return {key: x for key, x in super().__getstate__().items() if key != "_known_pieces"}

    def after_forward(self, module: nn.Module, inputs: tuple, output: Any) -> Any:
        """Take the alias away. In a dry run, the output of experts, with what they keep."""
        taken, values = self._take_away(), self._parameters["values"]
        if not torch.is_grad_enabled() or not values.requires_grad:
            return None
        if taken is None:
            raise RuntimeError(
                f"{self._sparse_ft_state.label}: its reader calls itself or runs in several"
                " threads; a selection then gets part of its gradient only; train it whole ('all')"
                " or leave it out"
            )
        is_dry = isinstance(taken, FakeTensor) and isinstance(output, torch.Tensor)
        if is_dry and is_eager() and self.by_experts:
            return dry_tap(output, values, self._weight())
        return None

    # Of the outputs that it sees: a lean layer may write over them.
    after_forward.holds_nothing = True  # type: ignore[attr-defined]

    def _take_away(self) -> torch.Tensor | None:
        weight = self._weight_or_none()
        # A pruned one is someone else's.
        taken = self.owner.__dict__.get(self.name) if weight is not None else None
        if taken is not None:
            self._put_flat(weight)
            # last: who is interrupted before finds it again
            self.owner.__dict__.pop(self.name, None)
        return taken

    def _put(self, tensor: torch.Tensor) -> None:
        self.owner.__dict__[self.name] = tensor
        self._put_flat(tensor)

    def _put_flat(self, tensor: torch.Tensor) -> None:
        owner: Any = self.owner
        if self._is_flat():
            set_flat_weight(owner, self.name, tensor)

    def after_step(self, written: bool, reached: bool) -> None:
        super().after_step(written, reached)
        if self._weight_or_none() is not None:
            self.sync()  # at once: others than the reader may read this weight, and would not look

    def remove(self) -> None:
        """Undo the constructor, but for requires_grad; the weight stays as it is.

        Called again after an interrupt, it does the rest: the place in the model, by which it is
        found, goes last.
        """
        self._take_away()  # there still after an interrupted forward
        Parameters.remove(self.owner, self.name)
        for handle in self._handles:
            handle.remove()
        self._deselect()
        remove_hooks_of(self, self.reader)
        if self.owner._modules.get(f"{self.name}_selected") is self:
            del self.owner._modules[f"{self.name}_selected"]

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        if self._parameters["values"].dtype != self._weight().dtype:
            super()._save_to_state_dict(destination, prefix, keep_vars)
        self.sync()

    def _keys(self, prefix: str) -> tuple[str, str]:
        return prefix.removesuffix(f"{self.name}_selected.") + self.name, prefix + "values"

    def _before_owner_loads(
        self, owner: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any
    ) -> None:
        own_prefix = f"{prefix}{self.name}_selected."
        check_loaded(self, state_dict, own_prefix)
        self._sync_to_load(state_dict, own_prefix)
        self._sparse_ft_state.shown = self._sparse_ft_state.held = (
            None  # the owner may swap its weight: no reference is left
        )
        self.__dict__["_weight_comes"] = prefix + self.name in state_dict

    def _weight_is_in(self, state_dict: dict[str, Any], prefix: str) -> bool:
        return self.__dict__.pop("_weight_comes", False)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *rest: list[str],
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing_keys, *rest)
        if self._parameters["values"].dtype == self._weight().dtype:
            missing_keys[:] = [k for k in missing_keys if k != prefix + "values"]
