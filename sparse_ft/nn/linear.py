"""SelectiveLinear and SelectiveConv1D: dense forward, gradient and optimiser state for the selected
entries only.
"""

import copy
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import nn

from .._torch import is_eager
from ..functional import apply_product, selective_product
from ..parallel.dtensors import address_of
from ..selection import Selection
from .foreign import check_numbers, check_weight, refuse_tracing
from .loading import check_loaded
from .reading import read
from .selected import Selected
from .showing import is_shown
from .state import NAME


def fresh_weight(self: Any) -> torch.Tensor:
    """The dense weight, showing `values`; with gradients on, whoever reads it sends its gradient to
    them.
    """
    if "weight" not in self._parameters:
        raise AttributeError(f"{type(self).__name__} has no weight (it was deleted)")
    return read(self)


def adopt(
    cls: type,
    module: Any,
    selection: Selection,
    label: str,
    values_dtype: torch.dtype | None = None,
    origin: bool = False,
) -> None:
    """Turn `module` itself into a `cls` with `selection`; `restore` undoes it, also half done.

    origin: keep what the selected entries are now.
    """
    weight = module._parameters["weight"]
    check_weight(label, weight)
    Selected._begin(module, label, original=type(module))
    module.__class__ = cls
    shape = weight.shape[:-1].numel(), weight.size(-1)
    module._select(selection, shape, values_dtype, origin)


def is_adopted(module: nn.Module) -> bool:
    """Whether `adopt` has begun on this module, and `restore` has not ended."""
    state = module.__dict__.get(NAME)
    return state is not None and state.original is not None


def restore(module: Any) -> None:
    """Undo `adopt`: the original class, holding the weight as it is. Its requires_grad is the
    caller's to put back.

    Nothing here can fail. Called again after an interrupt, it does the rest: what tells of the
    adoption goes last.
    """
    Selected._deselect(module)
    module.__class__ = _class_without_selection(type(module), module.__dict__[NAME].original)
    del module.__dict__[NAME]


def _class_without_selection(cls: type, original: type) -> type:
    """`original` in the place of the selective class, also below a class that someone put on top (a
    parametrised bias).
    """
    if not issubclass(cls, Adopted):
        return cls
    below = [base for base in cls.__bases__ if Adopted in base.__bases__]
    if not below:
        return original
    bases = tuple(original if base in below else base for base in cls.__bases__)
    own = {
        name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")
    }
    return type(cls.__name__.replace(below[0].__name__, original.__name__), bases, own)


class Adopted(Selected):
    """A module that was turned into a selective one in place (`adopt`) and can be turned back
    (`restore`).
    """

    weight = property(fresh_weight, lambda self, value: self._refuse())

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """torch's; refuses the new forms that weight_norm, spectral_norm and prune give to a
        weight, and leaves it in its place.
        """
        weight = self._parameters.get("weight")
        if name not in ("weight", "values"):
            held = self._sparse_ft_state.held
            taken = held.weight() if weight is None and held is not None else None
            if taken is not None:
                others = dict(self._parameters)
                self._parameters.clear()
                # first, as it was: optimisers and checkpoints count
                self._parameters.update(weight=taken, **others)
            if taken is not None or _is_one_memory(weight, param):
                self._refuse()
        super().register_parameter(name, param)

    def __delattr__(self, name: str) -> None:
        if name in ("weight", "values"):
            self._refuse()
        super().__delattr__(name)

    def _refuse(self) -> NoReturn:
        raise RuntimeError(
            f"{self._sparse_ft_state.label}: it has selected entries, so it cannot be deleted,"
            " pruned, normalised, parametrised or set to a plain tensor; sft.revert(model) first"
        )

    @classmethod
    def _from(cls, module: nn.Module, selection: Selection) -> Any:
        """A new module on the weight and bias of `module`; their storage is shared, `weight` stops
        requiring grad.
        """
        weight: Any = module._parameters["weight"]
        required_grad = weight is not None and weight.requires_grad
        if weight is not None:
            check_numbers(f"{type(module).__name__}.weight", weight)
        try:
            twin = copy.copy(module)
            twin.__dict__.update(
                {k: v.copy() for k, v in module.__dict__.items() if isinstance(v, dict)}
            )
            adopt(cls, twin, selection, f"{type(module).__name__}.weight")
            return twin
        except BaseException:
            if weight is not None and required_grad and not weight.requires_grad:
                weight.requires_grad_()
            raise

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # first: what is loaded may be this module's own memory, filled from a file
        check_loaded(self, state_dict, prefix)
        self._sync_to_load(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, selection={self._sparse_ft_state.selection}"


def _is_one_memory(weight: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether both begin at one address; tensors without memory have none."""
    if weight is None or other is None:
        return False
    return address_of(weight) == address_of(other) != 0


class SelectiveLinear(Adopted, nn.Linear):
    """`nn.Linear` of which only the selected entries train.

    weight: [out_features, in_features]; reading it synchronises, and leads the reader's gradient to
    values. values: Parameter of `selection.values_shape(weight.shape)`, fp32 over 16-bit weights
    unless `sft.convert` was told otherwise. bias: [out_features] or None, trainable as it was.
    Kept for backward: see `sparse_ft.functional.selective_linear`.
    """

    _input_dim = 1

    @classmethod
    def from_linear(cls, linear: nn.Linear, selection: Selection) -> "SelectiveLinear":
        """A selective module on `linear`'s own weight and bias (not copied; the weight stops
        requiring grad).

        Raises TypeError unless `linear` is exactly an `nn.Linear`, IndexError for a selection that
        does not fit.
        """
        if type(linear) is not nn.Linear:
            raise TypeError(
                f"linear: expected an nn.Linear, got {type(linear).__name__}; sft.convert handles"
                " other modules"
            )
        return cls._from(linear, selection)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        own = self.__dict__  # host time: see `is_shown`
        p, state = own["_parameters"], own.get("_sparse_ft_state")
        if state is None:
            # Reverted since someone kept this method (accelerate's hooks).
            return type(self).forward(self, input)
        try:
            if input.is_nested:  # torch's encoder in eval mode makes such
                return F.linear(input, self.weight, self.bias)
        except ValueError:
            refuse_tracing(state.label, (input,))
            raise
        weight, values, eager = p["weight"], p["values"], is_eager()
        if not (eager and is_shown(state, values, weight)):
            self.sync_to_run()
        bias = p["bias"] if "bias" in p and "bias" not in own else self.bias
        product = apply_product if eager and torch.is_grad_enabled() else selective_product
        return product(input, weight, values, bias, state.part, 1)


def is_conv1d(kind: type) -> bool:
    """Whether `kind` is transformers' `Conv1D`, which this package does not import."""
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


class SelectiveConv1D(Adopted):
    """transformers' `Conv1D`, a linear layer whose weight is stored [in, out], of which only the
    selected entries train.
    """

    _input_dim = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p, state = self._parameters, self.__dict__.get(NAME)
        if state is None:
            return type(self).forward(self, x)  # see SelectiveLinear
        self.sync_to_run()
        bias: Any = self.bias
        try:
            return selective_product(x, p["weight"], p["values"], bias, state.part, 0)
        except ValueError:
            refuse_tracing(state.label, (x,))
            raise

    def extra_repr(self) -> str:
        return f"nf={self.nf}, nx={self.nx}, selection={self._sparse_ft_state.selection}"
