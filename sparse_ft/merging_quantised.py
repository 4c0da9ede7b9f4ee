"""merge_quantised: what trained over quantised weights goes into them, and what that costs."""

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import nn

from .annotations import AnyModule
from .conversion import taken_out
from .converted import record_of
from .quantised.module import quantised_in
from .quantised.quantiser import Quantiser, quantiser_of
from .quantised.transformers_mark import forget_quantised
from .texts import aligned

ALMOST_ALL = 0.5  # from this loss on, half of what was trained is rounding


class MergedRow(NamedTuple):
    """One weight. lost: the norm of what rounding changed, over that of what training changed; 0
    where all of the training is there, 1 where it and the noise are of one size. inf: nothing was
    trained, and something was rounded.
    """

    name: str
    how: str
    lost: float


class Merged:
    """What `sft.merge_quantised` wrote: `.rows`; prints as a table."""

    def __init__(self, rows: list[MergedRow]) -> None:
        self.rows = tuple(rows)

    def __str__(self) -> str:
        lines = [("parameter", "is now", "rounding / training")]
        lines += [(row.name, row.how, f"{row.lost:.2%}") for row in self.rows]
        return "\n".join(aligned(lines, numbers=(2,)))

    __repr__ = __str__


class _New(NamedTuple):
    """What one layer gets."""

    name: str
    layer: AnyModule
    quantiser: type[Quantiser]
    weight: nn.Parameter
    lost: float


def merge_quantised(model: nn.Module, requantise: bool = False) -> Merged:
    """Write what trained over quantised weights into them, and take the selective modules out
    (`sft.revert`). Returns a `Merged`, which says what rounding costs.

    model: converted by `sft.convert`. requantise: False: each quantised layer with selected entries
    becomes an `nn.Linear` in the dtype that it was quantised from (that of the model's other
    parameters where it does not tell: bitsandbytes' int8), larger than it was; values are rounded
    to that dtype. True: it stays in its own format, and its weight is quantised anew:
    selected entries are rounded as all others are, and others move with the scales that they share.
    Warns where that is more than half of what training changed. Quantised layers without selected
    entries stay as they are; a model of transformers that has none left forgets that it was
    quantised, and can be saved and loaded as a plain one.

    After an exception nothing that was trained is lost, and another call does the rest. Raises
    ValueError for a model without such layers, or of a format that cannot be requantised, by name;
    the model is as it was then.
    """
    if record_of(model) is None:
        raise ValueError("model: it was not converted (call it on the module that sft.convert got)")
    layers = list(quantised_in(model))
    if not layers:
        raise ValueError(
            "model: no selected entries are of a quantised layer; sft.revert(model) leaves what was"
            " trained in the weights"
        )
    with torch.no_grad():
        other = _dtype_of(model)
        found = [_new(layer, requantise, other) for layer in layers if _is_to_do(layer)]
    rows = []
    for new in found:
        # While it is selective still: what was trained is in the values, in the weight, or in both.
        if requantise:
            new.quantiser.put(new.layer, new.weight)
        else:
            _make_plain(new)
        how = new.quantiser.name if requantise else f"nn.Linear, {new.weight.dtype}"
        rows.append(MergedRow(new.name, how, new.lost))
    taken_out(model)
    forget_quantised(model)
    _warn(rows)
    return Merged(rows)


def _dtype_of(model: nn.Module) -> torch.dtype:
    """Of the parameters of a model that are not quantised, and not values; of most of them."""
    numbers: dict[torch.dtype, int] = {}
    for name, parameter in model.named_parameters():
        is_plain = type(parameter) is nn.Parameter and parameter.is_floating_point()
        if is_plain and not name.endswith("values"):
            numbers[parameter.dtype] = numbers.get(parameter.dtype, 0) + parameter.numel()
    return max(numbers, key=lambda dtype: numbers[dtype], default=torch.float32)


def _new(layer: Any, requantise: bool, other: torch.dtype) -> _New:
    label, quantiser = layer._sparse_ft_state.label, layer.quantiser
    dtype = quantiser.dtype(layer) if quantiser.tells_dtype else other
    wide = torch.promote_types(torch.float32, dtype)
    base = layer.base_weight(dtype).to(wide)
    values = layer._parameters["values"].detach()
    wanted = layer._sparse_ft_state.selection.scatter_(base.clone(), values)
    if requantise:
        try:
            weight = quantiser.requantise(layer, wanted.clone())
        except NotImplementedError:
            raise ValueError(
                f"requantise: {label!r} is of the quantiser {quantiser.name!r}, which cannot"
                f" quantise a {type(layer.weight).__name__} anew; requantise=False makes a plain"
                " layer of it, which its own library can quantise"
            ) from None
        is_now = _dequantised(quantiser, layer, weight, wide)
    else:
        weight = nn.Parameter(wanted.to(dtype), requires_grad=False)
        is_now = weight.to(wide)
    trained = torch.linalg.vector_norm(wanted - base)
    rounded = torch.linalg.vector_norm(is_now - wanted)
    return _New(label, layer, quantiser, weight, _ratio(float(rounded), float(trained)))


def _ratio(rounded: float, trained: float) -> float:
    if rounded == 0:
        return 0.0
    return rounded / trained if trained else math.inf


def _dequantised(
    quantiser: type[Quantiser], layer: Any, weight: nn.Parameter, dtype: torch.dtype
) -> torch.Tensor:
    """What `layer` would hold with another weight of its format. The layer is left as it is."""
    original = layer._sparse_ft_state.original
    probe = original.__new__(original)
    probe.__dict__.update(layer.__dict__)
    probe.__dict__["_parameters"] = {**layer._parameters, "weight": weight}
    probe.__dict__.pop("_sparse_ft_state")
    return quantiser.dequantise(probe, dtype)


def _is_to_do(layer: Any) -> bool:
    """Whether no call that was interrupted has written this layer's weight."""
    is_quantised = quantiser_of(layer) is not None
    return is_quantised and layer._sparse_ft_state.selection is not None


def _make_plain(new: _New) -> None:
    """Once it is no more selective, the layer is an `nn.Linear`: hooks, name and place stay."""
    layer = new.layer
    layer._sparse_ft_state.original = nn.Linear
    layer.weight = new.weight
    for name in new.quantiser.OWN:
        layer.__dict__.pop(name, None)


def _warn(rows: list[MergedRow]) -> None:
    if not rows:
        return
    worst = max(rows, key=lambda row: row.lost)
    if worst.lost > ALMOST_ALL and math.isfinite(worst.lost):
        warnings.warn(
            f"{worst.name}: quantised anew, rounding changed its weight by {worst.lost:.0%} of what"
            " training did; requantise=False keeps it",
            stacklevel=3,
        )
