"""selected_wgrad of every structure that `layout.locate` knows: of those with no way of their own.

The dense product in strips, as many rows at a time as the workspace holds, each dropped once its
entries are taken.
"""

import torch
import triton
import triton.language as tl

from .layout import check_layout, copy_tile, locate, on_device, round_to, tile
from .selected_wgrad_gemm import WORKSPACE, accumulator, product
from .selected_wgrad_tables import strip_height


@triton.jit
def _take_located_kernel(
    strip_ptr,  # [last_row - first_row, columns] of the dense product, contiguous
    values_ptr,  # [num, M, N]
    index_ptr,
    first_row,
    last_row,
    columns,
    M,
    N,
    block_h,
    block_w,
    KIND: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    b, offs_m, offs_n = tile(M, N, BLOCK_M, BLOCK_N)
    row, column = locate(index_ptr, b, offs_m, offs_n, M, N, block_h, block_w, KIND)
    mask_m = (offs_m < M) & (row >= first_row) & (row < last_row)
    mask_n = (offs_n < N) & (column < columns)  # past the edge of the matrix is padding
    mask = mask_m[:, None] & mask_n[None, :]
    strip_ptrs = strip_ptr + (row - first_row)[:, None] * columns + column[None, :]
    v_ptrs = values_ptr + (b * M + offs_m)[:, None] * N + offs_n[None, :]
    value = tl.load(strip_ptrs, mask=mask, other=0.0)
    if ACCUMULATE:
        value += tl.load(v_ptrs, mask=mask, other=0.0).to(value.dtype)
    tl.store(v_ptrs, round_to(value, values_ptr.dtype.element_ty), mask=mask)


def wgrad_by_strips(
    values: torch.Tensor,
    grad_output: torch.Tensor,
    input: torch.Tensor,
    kind: str,
    index: torch.Tensor,
    block_h: int,
    block_w: int,
    accumulate: bool,
) -> None:
    """values, contiguous, (+)= the selected entries of grad_output.T @ input.

    Padding is zero, or stays what it was.
    """
    rows, columns = grad_output.size(1), input.size(1)
    walk, _ = check_layout(kind, index, block_h, block_w, rows, columns)
    grid, options = copy_tile(*walk)
    a_row = columns * accumulator(grad_output, input).itemsize
    height = strip_height(rows, WORKSPACE // a_row)
    if not accumulate:
        values.zero_()
    for first_row in range(0, rows, height):
        last_row = min(first_row + height, rows)
        strip = product(grad_output[:, first_row:last_row], input)
        with on_device(values):
            _take_located_kernel[grid](
                strip, values, index.contiguous(), first_row, last_row, columns, *walk[1:],
                block_h, block_w, KIND=kind, ACCUMULATE=accumulate, **options,
            )  # fmt: skip
