"""selected_wgrad of operands that lie as those of an earlier call did.

A layer asks for the same product at every step. All but addresses is known then, and what a kernel
is launched with is not derived anew, which takes the host five times as long as the launches.
"""

from collections.abc import Callable
from typing import Any

import torch

from .launching import relaunch
from .layout import cdiv, on_device
from .problems import code
from .selected_wgrad_blocks import OUT, TABLES, panels_launch, plan_of_blocks, sums_launch
from .selected_wgrad_entries import Dots, Tensors, dense_entries, strips_of_entries, taking
from .selected_wgrad_gemm import ALIGNED, SHORT, accumulator, aligned, dense_blocks, product
from .selected_wgrad_tables import tables_of

# (grad_output, input, index) -> values
Again = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
REMEMBERED = 64  # ways in which operands lay, of an index: sequences may have any length


def way_of(grad_output: torch.Tensor, input: torch.Tensor, *more: Any) -> tuple:
    """How operands lie: of two calls of one index and one way, only addresses differ.

    more: what else tells calls apart.
    """
    return (
        grad_output.dtype, grad_output.shape, grad_output.stride(),
        grad_output.data_ptr() % ALIGNED, grad_output.get_device(),
        input.dtype, input.shape, input.stride(), input.data_ptr() % ALIGNED, input.get_device(),
        more,
    )  # fmt: skip


def again_of(index: torch.Tensor) -> dict[tuple, Again | None]:
    """Who serves an index, by the way of the operands; None for a way that has no short cut."""
    tables = tables_of(index)
    known = tables.get(again_of)
    if known is None:
        known = tables[again_of] = {}
    return known


def remember(index: torch.Tensor, way: tuple, again: Again | None) -> None:
    """Let `again` serve operands that lie that way."""
    known = again_of(index)
    if len(known) >= REMEMBERED:
        known.clear()
    known[way] = again


def again_like(
    values: torch.Tensor,
    grad_output: torch.Tensor,
    input: torch.Tensor,
    kind: str,
    index: torch.Tensor,
    block_h: int,
    block_w: int,
) -> Again | None:
    """Who serves operands that lie as these do, of which `values` were just made: the same bits,
    less time of the host.
    """
    if not (_is_row_major(grad_output) and _is_row_major(input)):
        return None
    if grad_output.dtype != input.dtype or not (values.numel() and input.numel()):
        return None
    if kind in ("rows", "columns"):
        is_sum = values.dtype == torch.float32
        return _lines_again(kind, grad_output, input, index) if is_sum else None
    with on_device(values):
        if kind == "entries":
            dense = dense_entries(grad_output, input, index)
            serve = _strips_again if dense else _dots_again
            return serve(values, grad_output, input, index)
        if kind == "blocks" and input.element_size() == 2:
            return _blocks_again(values, grad_output, input, index, block_h, block_w)
    return None


def _is_row_major(operand: torch.Tensor) -> bool:
    return operand.size(1) == 1 or operand.stride(1) == 1


def _lines_again(
    kind: str, grad_output: torch.Tensor, input: torch.Tensor, index: torch.Tensor
) -> Again | None:
    """Who takes `wgrad_of_rows` or `wgrad_of_columns` of other operands that lie as these do; None
    where features must be padded, or widened.
    """
    if not input.is_cuda or input.dtype not in SHORT:
        return None
    taken = input if kind == "columns" else grad_output
    if index.numel() % (ALIGNED // taken.element_size()):
        return None
    if taken.size(1) == index.numel():
        return _product_of_short if aligned(taken, 0) is taken else None
    return _short_of_columns if kind == "columns" else _short_of_rows


def _product_of_short(
    grad_output: torch.Tensor, input: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    return torch.mm(grad_output.t(), input, out_dtype=torch.float32)


def _short_of_rows(
    grad_output: torch.Tensor, input: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    return _product_of_short(grad_output.index_select(1, index), input, index)


def _short_of_columns(
    grad_output: torch.Tensor, input: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    return _product_of_short(grad_output, input.index_select(1, index), index)


def _dots_again(
    values: torch.Tensor, grad_output: torch.Tensor, input: torch.Tensor, index: torch.Tensor
) -> Again | None:
    """Who takes what `dots` has just taken of other operands that lie as these do; None where it
    takes several parts.
    """
    how, operands = Dots.of(grad_output, input, index), (grad_output, input)
    if how.length < grad_output.size(0):
        return None
    packed = how.packed(*operands)
    arguments, constants = how.transposing(operands, index, packed, 0)
    transpose, transposed = relaunch(*arguments, **constants), arguments[7:]
    arguments, constants = how.adding(operands, index, packed, 0, values, values, False)
    add, added = relaunch(*arguments, **constants), arguments[7:]
    (count_g, count_x), length, nnz, dtype = how.counts, how.length, values.numel(), values.dtype

    def again(grad_output: torch.Tensor, input: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        packed_g = grad_output.new_empty((count_g, length))
        packed_x = grad_output.new_empty((count_x, length))
        values = grad_output.new_empty(nnz, dtype=dtype)
        with on_device(values):
            transpose(grad_output, input, index, packed_g, packed_x, *transposed)
            add(packed_g, packed_x, index, values, values, *added)
        return values

    return again


def _strips_again(
    values: torch.Tensor, grad_output: torch.Tensor, input: torch.Tensor, index: torch.Tensor
) -> Again:
    """Who takes what `by_strips` has just taken of other operands that lie as these do."""
    columns, nnz, dtype = input.size(1), values.numel(), values.dtype
    takes = []
    for first_row, last_row, first, last in strips_of_entries(grad_output, input, index):
        rows, entries = slice(first_row, last_row), slice(first, last)
        strip = input.new_empty((last_row - first_row, columns), dtype=accumulator(input))
        arguments, constants = taking(
            strip, index[entries], values[entries], first_row * columns, False
        )
        takes.append((rows, entries, relaunch(*arguments, **constants), arguments[5:]))

    def again(grad_output: torch.Tensor, input: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        values = grad_output.new_empty(nnz, dtype=dtype)
        for rows, entries, take, numbers in takes:
            strip = product(grad_output[:, rows], input)
            with on_device(values):
                take(strip, index[entries], values[entries], *numbers)
        return values

    if [rows for rows, *_ in takes] != [slice(0, grad_output.size(1))]:
        return again
    _, _, take, numbers = takes[0]

    def whole(grad_output: torch.Tensor, input: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        values = grad_output.new_empty(nnz, dtype=dtype)
        strip = product(grad_output, input)
        with on_device(values):
            take(strip, index, values, *numbers)
        return values

    return whole


def _blocks_again(
    values: torch.Tensor,
    grad_output: torch.Tensor,
    input: torch.Tensor,
    index: torch.Tensor,
    block_h: int,
    block_w: int,
) -> Again | None:
    """Who takes what `wgrad_of_blocks` has just taken of other operands that lie as these do; None
    where it takes strips.
    """
    if dense_blocks(grad_output, input, index, block_h, block_w):
        return None
    key, fields, programs, splits = plan_of_blocks(
        values, grad_output, input, index, block_h, block_w, False
    )
    shape, dtype, numel = values.shape, values.dtype, values.numel()
    fields = (*fields, *code(programs))
    device, _, _, *constants = key
    arguments, constants = panels_launch(dict(constants), (fields,), programs, device)
    multiply = relaunch(*arguments, **constants)
    tables, numbers = fields[TABLES], fields[OUT + 1 :]
    panel_is_of_grad_output = dict(constants)["P_FIRST"]

    def ordered(grad_output: torch.Tensor, input: torch.Tensor) -> Tensors:
        return (grad_output, input) if panel_is_of_grad_output else (input, grad_output)

    def whole(grad_output: torch.Tensor, input: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        values = grad_output.new_empty(shape, dtype=dtype)
        with on_device(values):
            multiply(((*ordered(grad_output, input), *tables, values, *numbers),))
        return values

    if splits == 1:
        return whole
    sum_numbers, sum_programs = (numel, *code(splits)), cdiv(numel, 1024)
    sum_numbers = (*sum_numbers, *code(sum_programs))
    summed = ((fields[OUT], values, *sum_numbers),)
    arguments, constants = sums_launch(summed, sum_programs, False)
    add = relaunch(*arguments, **constants)

    def split(grad_output: torch.Tensor, input: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        values = grad_output.new_empty(shape, dtype=dtype)
        partial = grad_output.new_empty((splits, numel), dtype=torch.float32)
        with on_device(values):
            multiply(((*ordered(grad_output, input), *tables, partial, *numbers),))
            add(((partial, values, *sum_numbers),))
        return values

    return split
