"""selected_wgrad: the selected entries of grad_output.T @ input, with no dense product and no
atomics.

Each layout by what reads the operands least: rows and columns gather and multiply, blocks share
panels, single entries are dot products; many blocks or entries are taken from strips of the dense
product.
"""

from collections.abc import Sequence

import torch

from .layout import check_layout, check_tensors, check_values
from .selected_wgrad_blocks import wgrad_of_blocks
from .selected_wgrad_entries import wgrad_of_entries
from .selected_wgrad_gemm import (
    blocks_by_panel,
    blocks_by_strips,
    dense_blocks,
    wgrad_of_columns,
    wgrad_of_rows,
)


def _row_major(name: str, operand: torch.Tensor) -> torch.Tensor:
    """[tokens, features] with last stride 1.

    As it is, or a copy of an operand that is transposed or expanded.
    """
    if operand.dim() != 2:
        raise ValueError(f"{name} must be [tokens, features], got {list(operand.shape)}")
    return operand if operand.size(1) == 1 or operand.stride(1) == 1 else operand.contiguous()


def _checked(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    kind: str,
    index: torch.Tensor,
    block_h: int,
    block_w: int,
    **values: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """Row-major operands and the shape of the values."""
    grad_output, input = _row_major("grad_output", grad_output), _row_major("input", input)
    if grad_output.size(0) != input.size(0):
        raise ValueError(
            f"input must have the {grad_output.size(0)} tokens of grad_output, got {input.size(0)}"
        )
    _, shape = check_layout(kind, index, block_h, block_w, grad_output.size(1), input.size(1))
    for name, tensor in values.items():
        check_values(name, tensor, shape)
    check_tensors(grad_output=grad_output, input=input, index=index, **values)
    return grad_output, input, shape


def _into(calls: list[tuple], accumulate: bool) -> None:
    """Blocks and entries, written to contiguous values by the program that has their sums.

    calls: of (values, grad_output, input, kind, index, block_h, block_w). Blocks of 16-bit operands
    share launches.
    """
    blocks = []
    for values, grad_output, input, kind, index, *block in calls:
        if not values.numel():
            continue
        if kind == "entries":
            wgrad_of_entries(values, grad_output, input, index, accumulate)
        elif dense_blocks(grad_output, input, index, *block):
            blocks_by_strips(values, grad_output, input, index, *block, accumulate)
        elif grad_output.dtype == input.dtype and input.element_size() == 2:
            blocks.append((values, grad_output, input, index, *block))
        else:
            blocks_by_panel(values, grad_output, input, index, *block, accumulate)
    if blocks:
        wgrad_of_blocks(blocks, accumulate)


def _product(
    grad_output: torch.Tensor, input: torch.Tensor, kind: str, index: torch.Tensor
) -> torch.Tensor:
    """Rows and columns: gather, then the library's product."""
    return (wgrad_of_rows if kind == "rows" else wgrad_of_columns)(grad_output, input, index)


def selected_wgrad_grouped_triton(
    grad_outputs: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
    kinds: Sequence[str],
    indices: Sequence[torch.Tensor],
    blocks: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
) -> list[torch.Tensor]:
    """[selected_wgrad_triton(...) of each], the same bits.

    blocks: block_h, block_w, block_h, block_w, ...
    """
    values, calls = [], []
    for grad_output, input, *layout in zip(
        grad_outputs, inputs, kinds, indices, blocks[::2], blocks[1::2]
    ):
        grad_output, input, shape = _checked(grad_output, input, *layout)
        wide = dtype or torch.promote_types(torch.float32, grad_output.dtype)
        if layout[0] in ("rows", "columns"):
            values.append(_product(grad_output, input, *layout[:2]).to(wide))
        else:
            values.append(torch.empty(shape, dtype=wide, device=grad_output.device))
            calls.append((values[-1], grad_output, input, *layout))
    _into(calls, accumulate=False)
    return values


def selected_wgrad_triton(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    kind: str,
    index: torch.Tensor,
    block_h: int,
    block_w: int,
    *,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """values[k] = sum_t grad_output[t, row(k)] * input[t, column(k)], summed in float32 (float64
    for float64).

    grad_output [tokens, rows], input [tokens, columns]. kind "rows" takes [tokens, R] and kind
    "columns" [tokens, C] too: the selected features only, in index order, gathered once for several
    calls. `dtype` is that of the sum by default. The same bits at every run.
    """
    return selected_wgrad_grouped_triton(
        [grad_output], [input], [kind], [index], [block_h, block_w], dtype=dtype
    )[0]


def selected_wgrad_grouped_triton_(
    values_grads: Sequence[torch.Tensor],
    grad_outputs: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
    kinds: Sequence[str],
    indices: Sequence[torch.Tensor],
    blocks: Sequence[int],
) -> None:
    """selected_wgrad_triton_(...) of each, the same bits.

    Nothing is written if a problem is refused.
    """
    problems = zip(values_grads, grad_outputs, inputs, kinds, indices, blocks[::2], blocks[1::2])
    checked = [(v, *_checked(*call, values_grad=v)[:2], *call[2:]) for v, *call in problems]
    calls, copies = [], []
    for values_grad, grad_output, input, *layout in checked:
        if layout[0] in ("rows", "columns"):
            values_grad.add_(_product(grad_output, input, *layout[:2]))
        else:
            packed = values_grad.contiguous()
            calls.append((packed, grad_output, input, *layout))
            copies += [(values_grad, packed)] if packed is not values_grad else []
    _into(calls, accumulate=True)
    for values_grad, packed in copies:
        values_grad.copy_(packed)


def selected_wgrad_triton_(
    values_grad: torch.Tensor,
    grad_output: torch.Tensor,
    input: torch.Tensor,
    kind: str,
    index: torch.Tensor,
    block_h: int,
    block_w: int,
) -> None:
    """values_grad += selected_wgrad(...), added before the one rounding."""
    selected_wgrad_grouped_triton_(
        [values_grad], [grad_output], [input], [kind], [index], [block_h, block_w]
    )
