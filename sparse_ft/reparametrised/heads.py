"""Offsets and scales of attention heads, at the layer that reads them (LoFiT; Yin et al., 2024)."""

import numbers
from collections.abc import Sequence
from typing import Any

import torch

from ..annotations import AnyModule
from .part import Merged, Reparametrised, as_stored, check_linear, out_by_in, wide


def _is_int(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


class _OfHeads(Reparametrised):
    """heads: which ones, by their place in the input of the output projection. head_dim: how many
    numbers each has.
    """

    def __init__(self, heads: Sequence[int], head_dim: int) -> None:
        super().__init__()
        heads = list(heads)
        if not all(_is_int(each) for each in (*heads, head_dim)):
            raise TypeError(f"heads: expected ints, got {heads} of {head_dim!r} numbers each")
        heads = [int(head) for head in heads]
        if not heads or sorted(set(heads)) != heads or heads[0] < 0:
            raise ValueError(f"heads: expected ascending numbers of heads, got {heads}")
        if head_dim < 1:
            raise ValueError(f"head_dim: expected a positive number, got {head_dim}")
        self.heads, self.head_dim = heads, head_dim
        self.inputs = 0

    def prepare(self, layer: AnyModule) -> None:
        check_linear(layer, f"{type(self).__name__}: it")
        self.inputs = out_by_in(layer).size(1)
        number, rest = divmod(self.inputs, self.head_dim)
        if rest or self.heads[-1] >= number:
            raise ValueError(
                f"heads: the layer reads {self.inputs} features, {number} heads of"
                f" {self.head_dim}; got heads up to {self.heads[-1]}"
            )
        self.values = self.parameter(layer, len(self.heads), self.head_dim)

    def over_inputs(self, values: torch.Tensor) -> torch.Tensor:
        """values [heads, head_dim] in their places among the layer's inputs, [in]."""
        heads = torch.tensor(self.heads, device=values.device)
        whole = values.new_zeros(self.inputs // self.head_dim, self.head_dim)
        return whole.index_copy(0, heads, values).view(-1)

    def told(self) -> dict[str, Any]:
        return {"kind": self.kind, "heads": self.heads, "head_dim": self.head_dim}


class HeadOffsets(_OfHeads):
    """`W @ (x + v) + b`: a vector v for each chosen head, added to what the head gives.

    It stands on the output projection of an attention (`o_proj`): under grouped queries no bias of
    v_proj does the same. values: [heads, head_dim], zero at first. Merged, it is a bias, `b + W @
    v`; where the projection has none, `new_bias=True` lets it get one (a model class that is built
    without will not load it), and merging is refused otherwise.
    """

    kind = "head_offsets"

    def __init__(self, heads: Sequence[int], head_dim: int, new_bias: bool = False) -> None:
        super().__init__(heads, head_dim)
        self.new_bias = new_bias

    def before(self, layer: AnyModule, input: torch.Tensor) -> torch.Tensor:
        return input + self.over_inputs(self.values).to(input.dtype)

    def why_not_merged(self, layer: AnyModule) -> str:
        if layer.bias is None and not self.new_bias:
            return (
                "the layer has no bias, which the offsets become; HeadOffsets(..., new_bias=True)"
                " gives it one"
            )
        return ""

    def merged(self, layer: AnyModule) -> Merged:
        weight, offset = out_by_in(layer), self.over_inputs(wide(self.values))
        bias = weight @ offset.to(weight.dtype)
        return {"bias": bias if layer.bias is None else bias + wide(layer.bias)}


class HeadScales(_OfHeads):
    """`W @ ((1 + a) * x) + b`: a factor for each number that a chosen head gives.

    LoFiT's first phase trains these on all heads with an L1 penalty, and takes the heads whose `a`
    has the largest norm. values: a, [heads, head_dim], zero at first. Merged into the columns of W.
    """

    kind = "head_scales"

    def before(self, layer: AnyModule, input: torch.Tensor) -> torch.Tensor:
        return input + input * self.over_inputs(self.values).to(input.dtype)

    def why_not_merged(self, layer: AnyModule) -> str:
        return ""

    def merged(self, layer: AnyModule) -> Merged:
        weight = out_by_in(layer)
        factors = 1 + self.over_inputs(wide(self.values))
        return {"weight": as_stored(layer, weight * factors.to(weight.dtype))}
