"""Quantised: a quantised linear layer, in its own format, of which the selected entries train in
full precision.

There is no cache of the values in the weight, as other selective modules have: the codes stay what
they are, and whoever multiplies dequantises them into fresh memory and writes the values over it.
"""

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .. import ops
from .._torch import is_compiling, is_transformed, key_of
from ..annotations import AnyModule
from ..nn.foreign import why_managed
from ..nn.linear import Adopted
from ..nn.selected import Selected
from ..nn.state import NAME
from ..selection import Selection
from .copied import with_codes, without_codes
from .product import quantised_product
from .quantiser import Quantiser, known_kinds, quantiser_of


def shape_of(layer: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a quantised linear layer, whatever it stores; None of any other module."""
    if quantiser_of(layer) is None:
        return None
    known: AnyModule = layer
    return known.out_features, known.in_features


def check_quantised(
    label: str, layer: AnyModule, values_dtype: torch.dtype | None
) -> type[Quantiser]:
    """The quantiser of a layer; raises ValueError for one of which no entries can train, with the
    way out.
    """
    quantiser = quantiser_of(layer)
    assert quantiser is not None, label
    why = quantiser.why_not(layer)
    if why is None and "forward" in layer.__dict__:
        why = (
            "its forward was replaced (accelerate's hooks, a patch), which reads the codes in its"
            " own way; load the model onto one device, or remove the hook first"
        )
    if why is None and torch.is_inference_mode_enabled():
        why = "converted under inference_mode; do it outside"
    if why is None and layer.weight.device.type == "meta":
        why = "on the meta device, so it has no numbers; load the model first"
    if why is not None:
        raise ValueError(f"{label}: {why}")
    wide = quantiser.dtype(layer)
    if values_dtype is not None and torch.promote_types(values_dtype, wide) != values_dtype:
        raise TypeError(
            f"values_dtype: {values_dtype} does not hold every number of {label}, which"
            f" dequantises to {wide}; take a wider one"
        )
    return quantiser


def adopt_quantised(
    layer: AnyModule,
    selection: Selection,
    label: str,
    values_dtype: torch.dtype | None = None,
    origin: bool = False,
) -> None:
    """Turn `layer` itself into a `Quantised`; `nn.linear.restore` undoes it, also half done."""
    shape = shape_of(layer)
    original: Any = type(layer)
    Selected._begin(layer, label, original=original)
    layer.__class__ = class_for(original)
    layer._select(selection, shape, values_dtype, origin)


@functools.cache
def class_for(original: Any) -> type:
    """The class of quantised layers of class `original` with selected entries."""
    name = f"Selective{original.__name__}"
    # `Adopted` stands in the bases, for who asks which part of a class came from here.
    return type(name, (Quantised, Adopted, original), {"__module__": __name__})


def blank(original: type) -> Any:
    """A module of `class_for(original)` without any state, for copy and pickle."""
    cls: Any = class_for(original)
    return cls.__new__(cls)


class Quantised:
    """Mixin, in front of `Adopted` and the layer's own class.

    weight: as the quantised layer has it, without the values. values: Parameter of
    `selection.values_shape((out, in))`, float32 or wider unless asked otherwise. Reading,
    moving and saving the layer is its own class's affair.
    """

    _input_dim = 1
    has_cache = False  # of the values in the weight: optimisers write none
    _parameters: dict[str, Any]
    _sparse_ft_state: Any

    weight = property(lambda self: nn.Module.__getattr__(self, "weight"))

    def forward(self: AnyModule, input: torch.Tensor) -> torch.Tensor:
        if NAME not in self.__dict__:
            # Reverted since someone kept this method (accelerate's hooks).
            return type(self).forward(self, input)
        if is_compiling():
            return _apart(self, input)
        return _forward(self, input)

    @property
    def quantiser(self: AnyModule) -> type[Quantiser]:
        """How the weight is read."""
        return _known(quantiser_of(self), self)

    def base_weight(self: AnyModule, dtype: torch.dtype) -> torch.Tensor:
        """The dequantised weight [out, in] as it was quantised, in fresh memory."""
        if torch.is_inference_mode_enabled():
            # Tensors of torchao's own classes cannot be cut into strips there.
            with torch.inference_mode(False), torch.no_grad():
                return self.base_weight(dtype)
        dense = self.quantiser.dequantise(self, dtype)
        shape = self._sparse_ft_state.matrix_shape
        if tuple(dense.shape) != shape or dense.dtype != dtype:
            raise ValueError(
                f"{self._sparse_ft_state.label}: its quantiser {self.quantiser.name!r} gave"
                f" {tuple(dense.shape)} of {dense.dtype}, expected {shape} of {dtype}"
            )
        return dense.contiguous()

    def dense_weight(self: AnyModule, dtype: torch.dtype) -> torch.Tensor:
        """The dequantised weight [out, in] with the values written over it, in fresh memory."""
        dense = self.base_weight(dtype)
        layout = self._sparse_ft_state.selection.layout
        values = self._parameters["values"].detach()
        ops.scatter_selected_(dense, values, layout)
        return dense

    def base_values(self: AnyModule, dtype: torch.dtype) -> torch.Tensor:
        """What the quantised weight itself holds at the selected entries, shaped as the values."""
        return self._sparse_ft_state.selection.gather(self.base_weight(dtype))

    def is_trained(self: AnyModule) -> bool:
        """Whether the values differ from what the quantised weight holds there."""
        if quantiser_of(self) is None:
            return False  # its weight holds them: a merge that was interrupted has been here
        values = self._parameters["values"].detach()
        there = self.base_values(_wide(self)).to(values.dtype)
        return not torch.allclose(there, values, rtol=0, atol=0, equal_nan=True)

    def sync(self: AnyModule, force: bool = False) -> None:
        """There is nothing to bring up to date but what finds the module by its values."""
        state = self._sparse_ft_state
        if is_transformed() and torch.is_grad_enabled():
            raise RuntimeError(
                f"{state.label}: selected entries do not train under torch.func transforms (grad,"
                " vmap, jvp, …); use loss.backward()"
            )
        values = self._parameters.get("values")
        if values is None:
            return  # on its way in
        is_linked = values is state.linked
        why = why_managed(values, self._parameters["weight"], is_linked)
        if why is not None:
            raise RuntimeError(
                f"{state.label}: {why}, and it is quantised: its selected entries do not train in"
                " shards; use DistributedDataParallel"
            )
        if not is_linked:
            self._settle()  # an `_apply` that failed did not come to that

    def write_back(self) -> None:
        """Nothing: the codes do not hold the values, and `warn_of_discarded` says so."""

    def after_step(self: AnyModule, written: bool, reached: bool) -> None:
        """See `Showing.after_step`: no weight has gone stale, but values that a graph saved have
        changed, which not every optimiser's write tells.
        """
        super().after_step(True, reached)  # type: ignore[misc]
        if not written:
            torch.autograd.graph.increment_version(self._parameters["values"])

    def after_foreign_step(self) -> None:
        """Whoever changed the values: the next forward reads them."""

    def _mark_shown(self) -> None:
        """The weight shows no values."""

    def _matrix(self: AnyModule) -> torch.Tensor:
        """A copy, to read: what is written to it goes nowhere."""
        return self.dense_weight(_wide(self))

    def _select(
        self: AnyModule,
        selection: Selection,
        shape: tuple[int, int],
        values_dtype: torch.dtype | None = None,
        origin: bool = False,
    ) -> None:
        """See `Selected._select`."""
        weight = self._parameters["weight"]
        state = self._sparse_ft_state
        selection.check(shape)
        selection = selection.to(weight.device)
        state.matrix_shape = tuple(shape)
        base = self.base_weight(_wide(self))
        own = {key_of(part.untyped_storage()) for part in self.quantiser.tensors(self)}
        if key_of(base.untyped_storage()) in own:
            raise ValueError(
                f"{state.label}: its quantiser {self.quantiser.name!r} dequantises into the"
                " layer's own memory, which would be written to; return a copy"
            )
        gathered = selection.gather(base)
        values = nn.Parameter(gathered.to(values_dtype or gathered.dtype))
        state.selection = selection
        state.chosen_dtype = values_dtype
        state.origin = gathered.clone() if origin else None
        self.register_parameter("values", values)
        weight.requires_grad_(False)

    def _load_from_state_dict(
        self: AnyModule,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *rest: Any,
    ) -> None:
        """See `Selected`: values that do not come along are what the loaded codes hold."""
        plain = self.quantiser.load(self, state_dict, prefix)
        super()._load_from_state_dict(  # type: ignore[misc]
            plain, prefix, metadata, strict, missing_keys, *rest
        )
        weight, values = self._keys(prefix)
        if values not in state_dict and weight in state_dict:
            with torch.no_grad():
                own = self._parameters["values"]
                own.copy_(self.base_values(_wide(self)))

    def __reduce_ex__(self: AnyModule, protocol: Any) -> tuple[Any, ...]:
        """A copy or a pickle finds the class by the layer's own."""
        state = with_codes(self.__getstate__())
        return blank, (self._sparse_ft_state.original,), state

    def __setstate__(self: AnyModule, state: dict[str, Any]) -> None:
        super().__setstate__(without_codes(state, self))  # type: ignore[misc]


def _forward(module: AnyModule, input: torch.Tensor) -> torch.Tensor:
    module.sync()
    parameters = module._parameters
    return quantised_product(module, input, parameters["values"], module.bias)


_apart = torch.compiler.disable(
    _forward, reason="a quantised layer of sparse_ft dequantises outside of the graph"
)


def _known(quantiser: type[Quantiser] | None, module: AnyModule) -> type[Quantiser]:
    if quantiser is None:
        raise ValueError(
            f"{module._sparse_ft_state.label}: its weight is a"
            f" {type(module._parameters.get('weight')).__name__} now, and the quantisers are for"
            f" {known_kinds()}; sft.revert(model), then convert again"
        )
    return quantiser


def _wide(module: AnyModule) -> torch.dtype:
    """What values are gathered in: float32, or wider."""
    return torch.promote_types(torch.float32, module.quantiser.dtype(module))


def quantised_in(model: nn.Module) -> Iterator[Any]:
    """The `Quantised` modules of a model."""
    for module in model.modules():
        if isinstance(module, Quantised):
            yield module


def warn_of_discarded(model: nn.Module) -> None:
    """Say what `sft.revert` does not write anywhere, once."""
    trained = [
        module._sparse_ft_state.label
        for module in quantised_in(model)
        if module._sparse_ft_state.selection is not None and module.is_trained()
    ]
    if trained:
        more = f" and {len(trained) - 3} more" if len(trained) > 3 else ""
        warnings.warn(
            f"{', '.join(trained[:3])}{more}: the quantised layers come back as they were, without"
            " what was trained; sft.merge_quantised(model) writes it into their weights, and"
            " sft.save_delta keeps it",
            stacklevel=4,
        )
