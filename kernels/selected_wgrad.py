"""selected_wgrad: the selected entries of grad_output.T @ input, with no dense product and no atomics.

Each layout by what reads the operands least: rows and columns gather and multiply, blocks share panels, single entries are
dot products or, where there are many, taken from strips of the dense product.
"""

import torch

from .layout import check_layout, check_tensors, check_values
from .selected_wgrad_blocks import wgrad_of_blocks
from .selected_wgrad_entries import wgrad_of_entries
from .selected_wgrad_gemm import blocks_by_panel, wgrad_of_columns, wgrad_of_rows


def _row_major(name, operand):
    """[tokens, features] with last stride 1: as it is, or a copy of an operand that is transposed or expanded."""
    if operand.dim() != 2:
        raise ValueError(f"{name} must be [tokens, features], got {list(operand.shape)}")
    return operand if operand.size(1) == 1 or operand.stride(1) == 1 else operand.contiguous()


def _checked(grad_output, input, kind, index, block_h, block_w, **values):
    """Row-major operands and the shape of the values."""
    grad_output, input = _row_major("grad_output", grad_output), _row_major("input", input)
    if grad_output.size(0) != input.size(0):
        raise ValueError(f"input must have the {grad_output.size(0)} tokens of grad_output, got {input.size(0)}")
    _, shape = check_layout(kind, index, block_h, block_w, grad_output.size(1), input.size(1))
    for name, tensor in values.items():
        check_values(name, tensor, shape)
    check_tensors(grad_output=grad_output, input=input, index=index, **values)
    return grad_output, input, shape


def _into(values, grad_output, input, kind, index, block_h, block_w, accumulate):
    """Blocks and entries, written to contiguous values by the program that has their sums."""
    if not values.numel():
        return
    if kind == "entries":
        wgrad_of_entries(values, grad_output, input, index, accumulate)
    else:
        short = grad_output.dtype == input.dtype and input.element_size() == 2
        blocks = wgrad_of_blocks if short else blocks_by_panel
        blocks(values, grad_output, input, index, block_h, block_w, accumulate)


def selected_wgrad_triton(grad_output, input, kind, index, block_h, block_w, *, dtype=None):
    """values[k] = sum_t grad_output[t, row(k)] * input[t, column(k)], summed in float32 (float64 for float64).

    grad_output [tokens, rows], input [tokens, columns]. kind "rows" takes [tokens, R] and kind "columns" [tokens, C] too:
    the selected features only, in index order, gathered once for several calls. `dtype` is that of the sum by default.
    The same bits at every run.
    """
    grad_output, input, shape = _checked(grad_output, input, kind, index, block_h, block_w)
    dtype = dtype or torch.promote_types(torch.float32, grad_output.dtype)
    if kind in ("rows", "columns"):
        return (wgrad_of_rows if kind == "rows" else wgrad_of_columns)(grad_output, input, index).to(dtype)
    values = torch.empty(shape, dtype=dtype, device=grad_output.device)
    _into(values, grad_output, input, kind, index, block_h, block_w, accumulate=False)
    return values


def selected_wgrad_triton_(values_grad, grad_output, input, kind, index, block_h, block_w):
    """values_grad += selected_wgrad(...), added before the one rounding."""
    grad_output, input, _ = _checked(grad_output, input, kind, index, block_h, block_w, values_grad=values_grad)
    if kind in ("rows", "columns"):
        values_grad.add_((wgrad_of_rows if kind == "rows" else wgrad_of_columns)(grad_output, input, index))
        return
    packed = values_grad.contiguous()
    _into(packed, grad_output, input, kind, index, block_h, block_w, accumulate=True)
    if packed is not values_grad:
        values_grad.copy_(packed)
