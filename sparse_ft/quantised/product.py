"""The product of a quantised layer of which some entries train: one autograd function for every
format and every structure.
"""

from typing import Any

import torch

from .. import ops
from .._torch import direct_apply
from ..annotations import AnyModule
from ..double_backward import refuse_double_backward
from ..functional import FEW
from ..products import flattened, product_of
from ..rebuild import cast, shared_copy, source_of, unviewed


def quantised_product(
    layer: AnyModule, input: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """`F.linear(input, W, bias)`, W being the dequantised weight with `values` written over it.

    layer: a `Quantised` module. input: [..., in]. values: shaped as its selection says. bias: [out]
    or None, in any dtype. Returns [..., out] in the dtype of the input (or of autocast). W is made
    for the forward, again for the backward if the input needs a gradient, and kept in neither.

    Kept for backward: values (by reference), and of the input what `selective_linear` keeps.
    """
    if not torch.is_grad_enabled():
        return _output_of(layer, input, bias)
    return _apply(input, values, bias, layer)


def _output_of(layer: AnyModule, input: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    dtype = _dtype_of(input)
    dense = layer.dense_weight(dtype)
    if bias is not None:
        bias = cast(bias, dtype)
    return product_of(input, dense, bias, 1)


def _dtype_of(input: torch.Tensor) -> torch.dtype:
    """What the product is computed in."""
    kind = input.device.type
    if torch.is_autocast_enabled(kind) and input.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return input.dtype


class _QuantisedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        values: torch.Tensor,
        bias: torch.Tensor | None,
        layer: AnyModule,
    ) -> torch.Tensor:
        output = unviewed(_output_of(layer, input, bias))
        part = layer._sparse_ft_state.part
        source = None
        kept: Any = ()
        if values.requires_grad:
            source, kept = _kept_of(input, part[0], output.dtype)
        # Values that were stepped on before the backward raise there, as a weight does.
        written_over = values if input.requires_grad else None
        ctx.save_for_backward(written_over, *kept)
        ctx.how = layer, part, source
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        refuse_double_backward("a quantised layer with selected entries")
        written_over, *kept = ctx.saved_tensors
        layer, part, source = ctx.how
        features, layout = part
        grad_input = grad_values = grad_bias = None
        flat = flattened(grad_output)  # [T, out]
        if written_over is not None:
            dense = layer.dense_weight(flat.dtype)
            grad_input = (flat @ dense).view(*grad_output.shape[:-1], dense.size(1))
            del dense
        if kept:
            input = kept[0] if source is None else source.rebuild(kept, features)
            input = cast(flattened(input), flat.dtype)  # [T, features]
            grad_values = ops.selected_wgrad(flat, input, layout)
        if ctx.needs_input_grad[2]:
            grad_bias = flat.sum(0)
        return grad_input, grad_values, grad_bias, None


def _kept_of(
    input: torch.Tensor, features: torch.Tensor | None, dtype: torch.dtype
) -> tuple[Any, tuple[torch.Tensor | None, ...]]:
    """(how a lean module makes the input again, or None; the tensors to keep for that)."""
    is_few = features is not None and FEW * features.size(0) < input.size(-1)
    source = None if is_few or input.is_leaf else source_of(input)
    tensors = None if source is None else source.tensors()
    if tensors is not None:
        return source, tensors
    if features is None:
        return None, (input,)
    return None, (shared_copy(input, features, dtype),)


_apply = direct_apply(_QuantisedProduct)
