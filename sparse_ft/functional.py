"""The autograd functions: a dense forward, and a backward that makes `values.grad` directly from
what was kept for it.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import is_grad_enabled

from . import ops
from ._torch import direct_apply, is_eager, is_view
from .double_backward import refuse_double_backward
from .linear_cross_entropy import linear_cross_entropy  # noqa: F401  (public here)
from .products import flattened, product_of
from .rebuild import cast, shared_copy, source_of, unviewed
from .selection import Selection
from .token_losses import linear_kl_divergence  # noqa: F401  (public here)

# What backward needs of the input, and the selection's layout on that: `Selection.restrict`.
Part = tuple[torch.Tensor | None, Any]

# less than one feature in so many of an input is copied: to make it again takes longer than the
# bytes are worth
FEW = 64


def selective_linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    values: torch.Tensor,
    selection: Selection,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """`F.linear(input, weight, bias)` whose gradient reaches `values`, the selected entries of
    `weight`, and never `weight`.

    input: [..., in]. weight: [out, in], detached, and already showing `values` at the selected
    entries (`SelectiveLinear` sees to it; `selection.scatter_(weight, values)` otherwise). values:
    shaped `selection.values_shape(weight.shape)`, floating point. bias: [out]. Returns [..., out].

    For backward it keeps the weight (by reference) if the input needs a gradient, and of the input
    nothing if values need none, the selected columns (shared among calls on one input) for
    `Columns` and `Blocks`, all of it for `Rows` and `Entries`; and nothing more where a lean module
    made the input and can make it again (less than one feature in 64 is copied all the same).
    Raises ValueError for a values of the wrong shape or a weight that requires grad; double
    backward raises RuntimeError.
    """
    selection = _checked(weight, values, selection)
    return selective_product(input, weight, values, bias, selection.restrict(1, weight.size(1)), 1)


def selective_addmm(
    input: torch.Tensor,
    weight: torch.Tensor,
    values: torch.Tensor,
    selection: Selection,
    bias: torch.Tensor,
) -> torch.Tensor:
    """`selective_linear` for a weight stored [in, out], as in transformers' `Conv1D`: `input @
    weight + bias`.
    """
    selection = _checked(weight, values, selection)
    return selective_product(input, weight, values, bias, selection.restrict(0, weight.size(0)), 0)


def selective_embedding(
    input: torch.Tensor,
    weight: torch.Tensor,
    values: torch.Tensor,
    selection: Selection,
    padding_idx: int | None = None,
) -> torch.Tensor:
    """`F.embedding(input, weight, padding_idx)` whose gradient reaches `values`, the selected rows
    of `weight`.

    input: integer tensor, any shape. weight: [num_embeddings, embedding_dim], already showing
    `values`. selection: `Rows`;
    values: [R, embedding_dim]. Returns [*input.shape, embedding_dim]. Keeps only `input` for
    backward, and no gradient of the table's size is made; the gradient has the same bits at every
    run, on a GPU too. Raises TypeError for another kind of selection.
    """
    selection = _checked(weight, values, selection)
    if selection.kind != "rows":
        raise TypeError(f"selection: an embedding trains whole rows, got {selection.kind!r}")
    if not (torch.is_grad_enabled() and values.requires_grad):
        return F.embedding(input, weight, padding_idx)
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.size(0)
    return _SelectiveEmbedding.apply(input, weight, values, selection.index, padding_idx)


def alias(
    weight: torch.Tensor, values: torch.Tensor, layout: Any, shape: tuple[int, int]
) -> torch.Tensor:
    """`weight` itself (no copy), whose gradient is reduced to `values` as soon as it is known.

    weight: any shape, viewable as the matrix `shape` (rows, columns). For modules that read a
    parameter in their own way: the dense gradient exists for a moment.
    """
    return _Alias.apply(weight, values, layout, shape)


def _checked(weight: torch.Tensor, values: torch.Tensor, selection: Selection) -> Any:
    """The selection, on the weight's device; or the error that names what does not fit."""
    if weight.requires_grad:
        raise ValueError(
            "weight: expected one that does not require grad (its selected entries train through"
            " values); call weight.requires_grad_(False)"
        )
    want = selection.values_shape(weight.shape)
    if values.shape != want:
        raise ValueError(
            f"values: expected shape {tuple(want)} for a weight {tuple(weight.shape)}, got"
            f" {tuple(values.shape)}"
        )
    return selection.to(weight.device)


def selective_product(
    input: torch.Tensor,
    weight: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    part: Part,
    input_dim: int,
) -> torch.Tensor:
    """What `selective_linear` (input_dim 1) and `selective_addmm` (input_dim 0) do once their
    arguments are checked.

    input_dim: the dimension of the weight that meets the input. part: what `selection.restrict`
    says of that dimension.
    """
    if not torch.is_grad_enabled():
        return product_of(input, weight, bias, input_dim)
    apply = apply_product if is_eager() else _TracedProduct.apply
    return apply(input, weight, values, bias, part, input_dim)


def lean_product(
    input: torch.Tensor,
    weight: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    part: Part,
    input_dim: int,
) -> torch.Tensor:
    """`selective_product` up to rounding: its dense products by whoever is fastest
    (`ops.dense_product`).
    """
    if not is_eager():
        return selective_product(input, weight, values, bias, part, input_dim)
    if not torch.is_grad_enabled():
        return _dense_product(input, weight, bias, input_dim)
    return _apply_lean_product(input, weight, values, bias, part, input_dim)


def _save(
    ctx: Any,
    input: torch.Tensor,
    weight: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    part: Part,
    input_dim: int,
    dtype: torch.dtype,
) -> None:
    """Keep for backward what it needs: the weight for an input that needs a gradient, of the input
    what values need.
    """
    features, source = part[0], None
    kept: Any = ()
    if values.requires_grad:
        source = None if input.is_leaf else source_of(input)
        if source is not None and features is not None:
            is_few = FEW * features.size(0) < input.size(-1)
            source = None if is_few else source
        kept = None if source is None else source.tensors()
        if kept is None:
            source = None
            kept = (input if features is None else shared_copy(input, features, dtype),)
    ctx.save_for_backward(weight if input.requires_grad else None, *kept)
    ctx.how = part, input_dim, source, bias is not None  # one attribute: each takes 0.2 µs


def _gradients(
    ctx: Any,
    grad_output: torch.Tensor,
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.mm,
) -> tuple[torch.Tensor | None, ...]:
    """Of a `_SelectiveProduct`'s arguments. product(a, b): `a @ b`, for the gradient towards the
    input. Few calls: each takes twice as long in autograd's own thread as elsewhere.
    """
    if is_grad_enabled():
        refuse_double_backward("selective_linear")
    weight, *kept = ctx.saved_tensors
    (features, layout), input_dim, source, has_bias = ctx.how
    flat = grad_output if grad_output.dim() == 2 else flattened(grad_output)  # [T, out]
    dtype = flat.dtype
    grad_input = grad_values = grad_bias = None
    if weight is not None:
        by = weight if weight.dtype is dtype else weight.to(dtype)
        grad_input = product(flat, by if input_dim == 1 else by.T)
        if flat is not grad_output:
            grad_input = grad_input.view(*grad_output.shape[:-1], weight.size(input_dim))
    if kept:
        input = kept[0] if source is None else source.rebuild(kept, features)
        input = input if input.dim() == 2 else flattened(input)  # [T, features]
        input = input if input.dtype is dtype else input.to(dtype)
        if features is not None and input_dim == 1:
            grad_values = ops.wgrad_of_kept(flat, input, layout)
        else:
            rows, columns = (flat, input) if input_dim == 1 else (input, flat)
            grad_values = ops.selected_wgrad(rows, columns, layout)
    if has_bias and ctx.needs_input_grad[3]:
        grad_bias = flat.sum(0)
    return grad_input, None, grad_values, grad_bias, None, None


class _SelectiveProduct(torch.autograd.Function):
    """part: what backward needs of the input, and the selection's layout on that
    (`Selection.restrict`).

    Backward leaves it to autograd to cast each gradient to the dtype of what it is for.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor,
        values: torch.Tensor,
        bias: torch.Tensor | None,
        part: Part,
        input_dim: int,
    ) -> torch.Tensor:
        plain = input.dim() == 2 or (
            input.is_contiguous() and (bias is not None or 1 not in input.shape)
        )
        plain = plain and input_dim == 1
        output = (
            F.linear(input, weight, bias) if plain else product_of(input, weight, bias, input_dim)
        )
        if is_view(output):  # `unviewed`, in less time
            output = output.data
        _save(ctx, input, weight, values, bias, part, input_dim, output.dtype)
        return output

    backward: Any = staticmethod(_gradients)


class _LeanProduct(_SelectiveProduct):
    """In a lean model, whose results are the same up to rounding: both dense products by whoever is
    fastest.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor,
        values: torch.Tensor,
        bias: torch.Tensor | None,
        part: Part,
        input_dim: int,
    ) -> torch.Tensor:
        output = unviewed(_dense_product(input, weight, bias, input_dim))
        _save(ctx, input, weight, values, bias, part, input_dim, output.dtype)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _gradients(ctx, grad_output, _fastest_product)


def _fastest_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return ops.dense_product(a, b.T)


def _dense_product(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, input_dim: int
) -> torch.Tensor:
    """`_product` by whoever is fastest; torch's own, bit for bit, where that is torch."""
    as_linear = weight if input_dim == 1 else weight.T
    if ops.serves_dense(input, as_linear, bias):
        return ops.dense_product(input, as_linear, bias)
    return product_of(input, weight, bias, input_dim)


class _TracedProduct(_SelectiveProduct):
    """In a graph of torch.compile: nothing is remembered from call to call. torch.func's transforms
    refuse it by name.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor,
        values: torch.Tensor,
        bias: torch.Tensor | None,
        part: Part,
        input_dim: int,
    ) -> torch.Tensor:
        output = unviewed(product_of(input, weight, bias, input_dim))
        kept: tuple[torch.Tensor, ...] = ()
        if values.requires_grad:
            features = part[0]
            kept = (
                input if features is None else input.index_select(-1, features).to(output.dtype),
            )
        ctx.save_for_backward(weight if input.requires_grad else None, *kept)
        ctx.how = part, input_dim, None, bias is not None
        return output


# `apply` readies its arguments for torch.func first, which takes 4 µs of a call's 15 and serves
# nothing outside of it.
apply_product = direct_apply(_SelectiveProduct)
_apply_lean_product = direct_apply(_LeanProduct)


class _SelectiveEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor,
        values: torch.Tensor,
        index: torch.Tensor,
        padding_idx: int | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(input)
        ctx.index, ctx.padding_idx, ctx.shape, ctx.dtype = (
            index,
            padding_idx,
            values.shape,
            values.dtype,
        )
        return unviewed(F.embedding(input, weight, padding_idx))

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        refuse_double_backward("selective_embedding")
        (input,) = ctx.saved_tensors
        rows = cast(flattened(grad_output), ctx.dtype)
        grad_values = rows_gradient(input, rows, ctx.index, ctx.padding_idx, ctx.shape)
        return None, None, grad_values, None, None


def rows_gradient(
    input: torch.Tensor,
    grad_output: torch.Tensor,
    index: torch.Tensor,
    padding_idx: int | None,
    shape: torch.Size | tuple[int, ...],
) -> torch.Tensor:
    """What each of the rows `index` gets of the gradient of `F.embedding(input, weight)`.

    input: integer tensor, any shape, of T tokens. grad_output: [..., embedding_dim], T rows. index:
    [R], sorted. shape: (R, embedding_dim), of the result.
    """
    tokens = input.reshape(-1)
    slot = torch.searchsorted(index, tokens.to(index.dtype)).clamp(max=index.size(0) - 1)
    miss = index[slot] != tokens
    if padding_idx is not None:
        miss |= tokens == padding_idx
    rows = flattened(grad_output).masked_fill(miss[:, None], 0)  # [T, embedding_dim]
    return _sums(rows.new_zeros(shape), slot, rows, is_ordered=rows.device.type == "cpu")


def _sums(
    sums: torch.Tensor, slot: torch.Tensor, rows: torch.Tensor, is_ordered: bool
) -> torch.Tensor:
    """`sums` [R, F] with each of `rows` [T, F] added to the one that `slot` [T] says.

    is_ordered: whether `index_add_` adds in the order of the tokens, as it does on a CPU; a GPU
    uses atomics there. `index_put_` sorts by slot first: the same bits at every run.
    """
    if is_ordered:
        return sums.index_add_(0, slot, rows)
    return sums.index_put_((slot,), rows, accumulate=True)


class _Alias(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, values: torch.Tensor, layout: Any, shape: tuple[int, int]
    ) -> torch.Tensor:
        ctx.layout, ctx.shape, ctx.dtype = layout, shape, values.dtype
        return weight.detach()

    @staticmethod
    def backward(ctx: Any, grad_weight: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        refuse_double_backward("alias")
        matrix = grad_weight.reshape(ctx.shape)
        return None, ops.gather_selected(matrix, ctx.layout, dtype=ctx.dtype), None, None
