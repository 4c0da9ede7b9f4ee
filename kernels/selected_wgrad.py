"""selected_wgrad: the selected entries of grad_output.T @ input, with no dense product and no
atomics.

Each layout by what reads the operands least: rows and columns gather and multiply, blocks share
panels, single entries are dot products; many blocks or entries, and structures that none of these
are, are taken from strips of the dense product.
"""

from collections.abc import Sequence

import torch

from .layout import STRUCTURES, check_layout, check_tensors, check_values
from .selected_wgrad_again import again_like, again_of, remember, way_of
from .selected_wgrad_blocks import wgrad_of_blocks
from .selected_wgrad_entries import dense_entries, strips_of_entries, wgrad_of_entries
from .selected_wgrad_gemm import (
    blocks_by_panel,
    blocks_by_strips,
    dense_blocks,
    strips_of_blocks,
    wgrad_of_columns,
    wgrad_of_rows,
)
from .selected_wgrad_strips import wgrad_by_strips
from .selected_wgrad_tables import panels

FLOATS = torch.bfloat16, torch.float32, torch.float16, torch.float64


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
    """What is no product of whole lines, written to contiguous values by the program that has the
    sums.

    calls: of (values, grad_output, input, kind, index, block_h, block_w). Blocks of 16-bit operands
    share launches.
    """
    blocks = []
    for values, grad_output, input, kind, index, *block in calls:
        if not values.numel():
            continue
        if kind == "entries":
            wgrad_of_entries(values, grad_output, input, index, accumulate)
        elif kind != "blocks":
            wgrad_by_strips(values, grad_output, input, kind, index, *block, accumulate)
        elif dense_blocks(grad_output, input, index, *block):
            blocks_by_strips(values, grad_output, input, index, *block, accumulate)
        elif grad_output.dtype == input.dtype and input.element_size() == 2:
            blocks.append((values, grad_output, input, index, *block))
        else:
            blocks_by_panel(values, grad_output, input, index, *block, accumulate)
    if blocks:
        wgrad_of_blocks(blocks, accumulate)


def _product(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    kind: str,
    index: torch.Tensor,
    block_h: int,
    block_w: int,
) -> torch.Tensor | None:
    """Whole rows or columns: gather, then the library's product. None for other structures."""
    structure = STRUCTURES[kind]
    if structure.lines is None:
        return None
    numbers = structure.numbers(index, block_h, block_w)
    of_lines = wgrad_of_rows if structure.lines == "rows" else wgrad_of_columns
    return of_lines(grad_output, input, numbers)


def _lines(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    kind: str,
    index: torch.Tensor,
    block_h: int,
    block_w: int,
) -> torch.Tensor:
    """Values of whole rows or columns. Who multiplies checks the operands, but does not call them
    by name: `_checked` does, where something is wrong.
    """
    problem = grad_output, input, kind, index, block_h, block_w
    if not (grad_output.is_cuda and grad_output.dtype in FLOATS and input.dtype in FLOATS):
        _checked(*problem)
    try:
        rows, columns = _row_major("grad_output", grad_output), _row_major("input", input)
        if kind == "columns":
            return wgrad_of_columns(rows, columns, index)
        if kind == "rows":
            return wgrad_of_rows(rows, columns, index)
        values = _product(rows, columns, *problem[2:])
    except (RuntimeError, IndexError):
        _checked(*problem)
        raise
    return values.view(_checked(*problem)[2])


def selected_wgrad_grouped_triton(
    problems: Sequence[tuple], *, dtype: torch.dtype | None = None
) -> list[torch.Tensor]:
    """[selected_wgrad_triton(*problem, dtype=dtype) for each], the same bits."""
    values, calls = [], []
    for given in problems:
        grad_output, input, shape = _checked(*given)
        layout = given[2:]
        wide = dtype or torch.promote_types(torch.float32, grad_output.dtype)
        product = _product(grad_output, input, *layout)
        if product is not None:
            values.append(product.to(wide).view(shape))
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
    way = way_of(grad_output, input, kind, block_h, block_w, dtype)
    known = again_of(index)
    again = known.get(way)
    if again is not None:
        return again(grad_output, input, index)
    problem = grad_output, input, kind, index, block_h, block_w
    if STRUCTURES[kind].lines is None:
        values = selected_wgrad_grouped_triton([problem], dtype=dtype)[0]
    else:
        values = _lines(*problem)
        values = values if dtype is None or dtype == values.dtype else values.to(dtype)
    if way not in known:
        remember(index, way, again_like(values, *problem))
    return values


def selected_wgrad_grouped_triton_(
    values_grads: Sequence[torch.Tensor], problems: Sequence[tuple]
) -> None:
    """selected_wgrad_triton_(values_grad, *problem) of each, the same bits.

    Nothing is written if a problem is refused.
    """
    checked = []
    for values_grad, given in zip(values_grads, problems):
        grad_output, input, _ = _checked(*given, values_grad=values_grad)
        checked.append((values_grad, grad_output, input, *given[2:]))
    calls, copies = [], []
    for values_grad, grad_output, input, *layout in checked:
        product = _product(grad_output, input, *layout)
        if product is not None:
            values_grad.add_(product.view(values_grad.shape))
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
    problem = grad_output, input, kind, index, block_h, block_w
    selected_wgrad_grouped_triton_([values_grad], [problem])


def prepare_selected_wgrad_triton(
    rows: int,
    columns: int,
    dtype: torch.dtype,
    kind: str,
    index: torch.Tensor,
    block_h: int,
    block_w: int,
) -> None:
    """Makes the tables that products of [tokens, rows] and [tokens, columns] in `dtype` look up.

    For who knows an index before they come: to make one waits for the device, which a graph that is
    recorded must not, and takes memory, which a graph's pool must not keep.
    """
    grad_output = index.new_empty((0, rows), dtype=dtype)
    input = index.new_empty((0, columns), dtype=dtype)
    if kind == "entries" and dense_entries(grad_output, input, index):
        strips_of_entries(grad_output, input, index)
    if kind == "blocks":
        panels(index, block_h, block_w)
        if dense_blocks(grad_output, input, index, block_h, block_w):
            strips_of_blocks(grad_output, input, index, block_h)
