"""scatter_selected_: compact values into the selected entries of a matrix: copied, added or swapped."""

import triton
import triton.language as tl

from .layout import (
    address,
    check_layout,
    check_tensors,
    check_values,
    copy_tile,
    locate,
    matrix_strides,
    on_device,
    round_to,
    tile,
)


@triton.jit
def _scatter_selected_kernel(
    matrix_ptr,  # [rows, columns]
    values_ptr,  # [num, M, N]
    index_ptr,
    rows,
    columns,
    stride_xm,
    stride_xn,
    M,
    N,
    block_h,
    block_w,
    KIND: tl.constexpr,
    FLAT: tl.constexpr,
    MODE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    b, offs_m, offs_n = tile(M, N, BLOCK_M, BLOCK_N)
    row, column = locate(index_ptr, b, offs_m, offs_n, M, N, block_h, block_w, KIND)
    mask_m, mask_n = offs_m < M, offs_n < N
    if KIND == "blocks":  # padding past the edge of the matrix is left alone
        mask_m, mask_n = mask_m & (row < rows), mask_n & (column < columns)
    mask = mask_m[:, None] & mask_n[None, :]
    x_ptrs = address(matrix_ptr, row[:, None], column[None, :], columns, stride_xm, stride_xn, KIND, FLAT)
    v_ptrs = values_ptr + (b * M + offs_m)[:, None] * N + offs_n[None, :]
    v = tl.load(v_ptrs, mask=mask, other=0.0)
    if MODE == "swap":
        tl.store(v_ptrs, tl.load(x_ptrs, mask=mask, other=0.0), mask=mask)
    if MODE == "add":  # in float32 (float64 where either side is), rounded once
        x = tl.load(x_ptrs, mask=mask, other=0.0)
        if x.dtype == tl.float64 or v.dtype == tl.float64:
            v = x.to(tl.float64) + v.to(tl.float64)
        else:
            v = x.to(tl.float32) + v.to(tl.float32)
    tl.store(x_ptrs, round_to(v, matrix_ptr.dtype.element_ty), mask=mask)


def _scatter(matrix, values, kind, index, block_h, block_w, mode):
    *strides, flat = matrix_strides("matrix", matrix)
    rows, columns = matrix.shape
    walk, shape = check_layout(kind, index, block_h, block_w, rows, columns)
    check_values("values", values, shape)
    check_tensors(matrix=matrix, values=values, index=index)
    packed = values.contiguous()
    if values.numel():
        grid, options = copy_tile(*walk)
        with on_device(matrix):
            _scatter_selected_kernel[grid](
                matrix, packed, index.contiguous(), rows, columns, *strides, *walk[1:], block_h, block_w,
                KIND=kind, FLAT=flat, MODE=mode, **options,
            )  # fmt: skip
    if mode == "swap" and packed is not values:
        values.copy_(packed)


def scatter_selected_triton_(matrix, values, kind, index, block_h, block_w, *, accumulate=False):
    """matrix[row(k), column(k)] = values[k], or += with `accumulate`; every other entry keeps its bits."""
    _scatter(matrix, values, kind, index, block_h, block_w, "add" if accumulate else "copy")


def swap_selected_triton_(matrix, values, kind, index, block_h, block_w):
    """matrix[row(k), column(k)] and values[k] change places; twice is the identity, so both share a dtype."""
    if values.dtype != matrix.dtype:
        raise TypeError(f"values must have the matrix's dtype {matrix.dtype} to be swapped, got {values.dtype}")
    _scatter(matrix, values, kind, index, block_h, block_w, "swap")
