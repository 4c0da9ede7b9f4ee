"""Deltas over quantised layers: their codes hold no values, so a delta goes in as a module that
writes them over what it dequantises, and comes out with it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..nn.linear import restore
from ..nn.state import NAME
from ..quantised.module import Quantised, adopt_quantised, check_quantised, shape_of
from ..quantised.quantiser import quantiser_of
from . import places
from .exchange import Begun, Exchange, Held, placed, tensor_of
from .fingerprint import fingerprint, written
from .part import Part

_MODULUS = 1 << 64
_FACTOR = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: tells codes from scales that hold the same


def fingerprint_of_codes(layer: nn.Module) -> str:
    """Of all tensors that a quantised layer is read from, its shape too: 16 hexadecimal digits."""
    quantiser: Any = quantiser_of(layer)
    rows, columns = shape_of(layer) or (0, 0)
    total = rows * 31 + columns
    for tensor in quantiser.tensors(layer):
        total = (total * _FACTOR + fingerprint(tensor)) % _MODULUS
    return written(total)


def codes_differ(layer: nn.Module, part: Part) -> str | None:
    """Why `layer` is not the base of `part`, in words; None where it is."""
    if part.rest not in ("", fingerprint_of_codes(layer)):
        return "is quantised, and holds other codes or scales than the delta's base"
    return None


def dense_of(layer: Any) -> torch.Tensor:
    """What a quantised layer holds, dequantised to float32: with values written over it where it
    has such.
    """
    if isinstance(layer, Quantised):
        with_values: Any = layer
        return with_values.dense_weight(torch.float32)
    quantiser: Any = quantiser_of(layer)
    return quantiser.dequantise(layer, torch.float32)


def exchanges_of(model: nn.Module, parts: Sequence[tuple[str, Part]]) -> list[Exchange]:
    """One exchange a part, all out; nothing is written. Raises as `tensor_of`."""
    return [_exchange(model, name, part) for name, part in parts]


def _exchange(model: nn.Module, name: str, part: Part) -> Exchange:
    tensor = tensor_of(model, name, part)
    layer = places.layer_of(model, name)
    if layer is None:
        return Exchange.of(name, part, tensor)
    return InLayer.over(name, part, layer)


@dataclasses.dataclass
class InLayer(Exchange):
    """A selection of a quantised layer: in, the layer is a `Quantised` that does not train."""

    layer: Any = None

    @classmethod
    def over(cls, name: str, part: Part, layer: Any) -> "InLayer":
        """An exchange that is out. Raises ValueError for a layer that another delta is in."""
        if NAME in layer.__dict__:
            raise ValueError(
                f"delta: {name!r} is quantised, and another delta is in it; one at a time goes into"
                " such a layer: sft.remove that one first, or sft.merge them"
            )
        if part.selection is None:
            raise ValueError(
                f"delta: {name!r} is quantised in this model, and the delta changes it whole; apply"
                " it to the base in full precision"
            )
        check_quantised(name, layer, None)
        values = part.values.detach().to(layer.weight.device, copy=True)
        return cls(name, part, Held(False, values), layer=layer)

    @torch.no_grad()
    def swap(self, model: nn.Module, quietly: bool) -> None:
        """Put the module in, or take it out. The codes are not touched, so no graph breaks."""
        placed(model, self.name, self.part)
        self.begun = Begun(self.held, None)
        if self.held.is_in:
            restore(self.layer)
        else:
            selection: Any = self.part.selection
            adopt_quantised(self.layer, selection, self.name, self.held.values.dtype)
            values = self.layer._parameters["values"]
            values.copy_(self.held.values)
            values.requires_grad_(False)
        self.held = Held(not self.held.is_in, self.held.values)
        self.begun = None

    @torch.no_grad()
    def settle(self, model: nn.Module, quietly: bool) -> None:
        """After an interrupt: half a module is none."""
        if self.begun is None:
            return
        if NAME in self.layer.__dict__:
            restore(self.layer)
        self.held = Held(False, self.held.values)
        self.begun = None
