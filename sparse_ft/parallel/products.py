"""The autograd functions on DTensors: torch's own forward, and a backward that makes the gradient
of `values` from what this process holds.

Each process computes the gradient of those entries that lie in its part of the weight, and has
zeros elsewhere: a DTensor whose placement is `Partial` along each dimension of the mesh that the
weight is sharded along. Who reads it sums it up, once however many backwards went before. A process
without any selected entry in its part has a gradient of zeros, and so takes part in that sum.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from .. import ops
from ..double_backward import refuse_double_backward
from ..functional import rows_gradient
from ..products import flattened
from ..rebuild import cast
from .portion import Portion

Placements = list[Placement]
Part = tuple[torch.Tensor | None, Any] | None  # `Selection.restrict` of a portion's selection


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a DTensor, without its history."""
    alone: Any = tensor.detach()
    here = alone.to_local()
    waiting: Any = getattr(here, "wait", None)  # of a collective that is still under way
    return here if waiting is None else waiting()


def parallel_linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    portion: Portion,
    part: Part,
) -> torch.Tensor:
    """`F.linear(input, weight, bias)` on DTensors, whose gradient reaches `values`.

    input: [..., in]. weight: [out, in], frozen. values: of the whole weight, replicated. portion:
    what of the selection lies in this process's part of the weight. part: of the portion's
    selection, what backward needs of the input.
    """
    if not torch.is_grad_enabled():
        return F.linear(input, weight, bias)
    input = _placed(input, _of_input(input, weight, input.dim() - 1))
    return _ParallelLinear.apply(input, weight, values, bias, portion, part)


def parallel_embedding(
    input: torch.Tensor,
    weight: torch.Tensor,
    values: torch.Tensor,
    portion: Portion,
    index: torch.Tensor,
    padding_idx: int | None,
) -> torch.Tensor:
    """`F.embedding(input, weight, padding_idx)` on DTensors, whose gradient reaches `values`, the
    selected rows of `weight`.

    index: those of the selected rows that lie here, as the tokens count them.
    """
    if not torch.is_grad_enabled():
        return F.embedding(input, weight, padding_idx)
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.size(0)
    return _ParallelEmbedding.apply(input, weight, values, portion, index, padding_idx)


def parallel_alias(weight: torch.Tensor, values: torch.Tensor, portion: Portion) -> torch.Tensor:
    """The DTensor `weight` itself, whose gradient is reduced to `values` as soon as it is known."""
    return _ParallelAlias.apply(weight, values, portion)


def _placed(tensor: torch.Tensor, placements: Placements) -> torch.Tensor:
    """A DTensor in these placements: itself where it has them."""
    assert isinstance(tensor, DTensor)
    if list(tensor.placements) == placements:
        return tensor
    return tensor.redistribute(placements=placements)


def _of_input(input: torch.Tensor, weight: torch.Tensor, features: int) -> Placements:
    """Where an input [..., in] must lie for a product of local parts."""
    assert isinstance(input, DTensor) and isinstance(weight, DTensor)
    placements: Placements = []
    for at, own in zip(weight.placements, input.placements):
        if at.is_shard(0):
            placements.append(Replicate())
        elif at.is_shard(1):
            placements.append(Shard(features))
        else:
            placements.append(_whole_features(own, features))
    return placements


def _of_result(
    input: torch.Tensor, weight: torch.Tensor, features: int, of_weight: int
) -> Placements:
    """Where the gradient of a result [..., features] must lie, whose input lies as it should.

    of_weight: the dimension of the weight that becomes the features: 0 of a product's, 1 of rows
    that tokens have taken out of a table. A weight cut along the other gives whole results.
    """
    assert isinstance(input, DTensor) and isinstance(weight, DTensor)
    placements: Placements = []
    for at, own in zip(weight.placements, input.placements):
        if at.is_shard(of_weight):
            placements.append(Shard(features))
        elif at.is_shard():
            placements.append(Replicate())
        else:
            placements.append(own)
    return placements


def _whole_features(own: Placement, features: int) -> Placement:
    """A batch may be cut along a dimension of the mesh that the weight is whole along."""
    if own.is_partial() or own.is_shard(features):
        return Replicate()
    return own


def _of_values(input: torch.Tensor, weight: torch.Tensor) -> Placements:
    """Of the gradient of values: a share of the sum wherever weight or batch are cut."""
    assert isinstance(input, DTensor) and isinstance(weight, DTensor)
    return [
        Replicate() if at.is_replicate() and own.is_replicate() else Partial()
        for at, own in zip(weight.placements, input.placements)
    ]


class _OfValues:
    """What makes the gradient of `values` a DTensor again."""

    __slots__ = ("portion", "dtype", "_mesh", "_shape", "_device")

    def __init__(self, portion: Portion, values: torch.Tensor) -> None:
        assert isinstance(values, DTensor)
        self.portion = portion
        self._mesh, self._shape = values.device_mesh, values.shape
        self.dtype, self._device = values.dtype, values.device

    def of(self, here: torch.Tensor | None, placements: Sequence[Placement]) -> DTensor:
        """here: of the portion's own values; None: none of them lie here."""
        whole = torch.zeros(self._shape, dtype=self.dtype, device=self._device)
        if here is not None:
            self.portion.put(here, whole)
        return DTensor.from_local(whole, self._mesh, placements, run_check=False)


class _ParallelLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor,
        values: torch.Tensor,
        bias: torch.Tensor | None,
        portion: Portion,
        part: Part,
    ) -> torch.Tensor:
        output = F.linear(input, weight, bias)
        kept: tuple[torch.Tensor, ...] = ()
        if values.requires_grad and part is not None:
            features, here = part[0], local(input)
            if features is not None:
                here = here.index_select(-1, features).to(output.dtype)
            kept = (here,)
        ctx.save_for_backward(weight if input.requires_grad else None, *kept)
        ctx.part = part
        ctx.output_placements = _of_result(input, weight, output.dim() - 1, of_weight=0)
        ctx.values = _OfValues(portion, values)
        ctx.values_placements = _of_values(input, weight)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        refuse_double_backward("selective_linear")
        weight, *kept = ctx.saved_tensors
        grad_output = _placed(grad_output, ctx.output_placements)
        grad_input = grad_values = grad_bias = None
        if weight is not None:
            grad_input = grad_output @ cast(weight, grad_output.dtype)
        if ctx.needs_input_grad[2]:
            here = None
            if kept:
                flat = flattened(local(grad_output))  # [T, out here]
                features = cast(flattened(kept[0]), flat.dtype)  # [T, features]
                here = ops.selected_wgrad(flat, features, ctx.part[1])
            grad_values = ctx.values.of(here, ctx.values_placements)
        if ctx.needs_input_grad[3]:
            grad_bias = grad_output.sum(tuple(range(grad_output.dim() - 1)))
        return grad_input, None, grad_values, grad_bias, None, None


class _ParallelEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor,
        values: torch.Tensor,
        portion: Portion,
        index: torch.Tensor,
        padding_idx: int | None,
    ) -> torch.Tensor:
        output = F.embedding(input, weight, padding_idx)
        ctx.save_for_backward(local(input))
        ctx.rows = index, padding_idx
        ctx.output_placements = _of_result(input, weight, output.dim() - 1, of_weight=1)
        ctx.values = _OfValues(portion, values)
        ctx.values_placements = _of_values(input, weight)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        refuse_double_backward("selective_embedding")
        (input,) = ctx.saved_tensors
        rows = flattened(local(_placed(grad_output, ctx.output_placements)))
        portion, here = ctx.values.portion, None
        if portion.selection is not None:
            index, padding_idx = ctx.rows
            shape = portion.selection.values_shape(portion.shape)
            rows = cast(rows, ctx.values.dtype)
            here = rows_gradient(input, rows, index, padding_idx, shape)
        grad_values = ctx.values.of(here, ctx.values_placements)
        return None, None, grad_values, None, None, None


class _ParallelAlias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Any, values: torch.Tensor, portion: Portion) -> torch.Tensor:
        ctx.weight_placements = weight.placements
        ctx.values = _OfValues(portion, values)
        return weight.detach()

    @staticmethod
    def backward(ctx: Any, grad_weight: Any) -> tuple[torch.Tensor | None, ...]:
        refuse_double_backward("alias")
        # A share of the sum stays one: of values, it is smaller.
        at = [
            own if wanted.is_replicate() and own.is_partial() else wanted
            for own, wanted in zip(grad_weight.placements, ctx.weight_placements)
        ]
        portion, here = ctx.values.portion, None
        matrix = local(_placed(grad_weight, at)).reshape(portion.shape)
        if portion.selection is not None:
            here = ops.gather_selected(matrix, portion.selection.layout)
        placements = [Replicate() if own.is_replicate() else Partial() for own in at]
        return None, ctx.values.of(here, placements), None
