"""gather_selected: the selected entries of a matrix as compact values."""

import torch
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
def _gather_selected_kernel(
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    b, offs_m, offs_n = tile(M, N, BLOCK_M, BLOCK_N)
    row, column = locate(index_ptr, b, offs_m, offs_n, M, N, block_h, block_w, KIND)
    mask_m, mask_n = offs_m < M, offs_n < N
    mask = mask_m[:, None] & mask_n[None, :]
    if KIND == "blocks":  # past the edge of the matrix a block is padded with zeros
        mask_m, mask_n = mask_m & (row < rows), mask_n & (column < columns)
    x_ptrs = address(matrix_ptr, row[:, None], column[None, :], columns, stride_xm, stride_xn, KIND, FLAT)
    x = tl.load(x_ptrs, mask=mask_m[:, None] & mask_n[None, :], other=0.0)
    offs_v = (b * M + offs_m)[:, None] * N + offs_n[None, :]
    tl.store(values_ptr + offs_v, round_to(x, values_ptr.dtype.element_ty), mask=mask)


def gather_selected_triton(matrix, kind, index, block_h, block_w, *, dtype=None, out=None):
    """values[k] = matrix[row(k), column(k)] in `dtype` (the matrix's by default); padding of ragged blocks is zero.

    out: contiguous values to write to instead of new ones.
    """
    *strides, flat = matrix_strides("matrix", matrix)
    rows, columns = matrix.shape
    walk, shape = check_layout(kind, index, block_h, block_w, rows, columns)
    values = torch.empty(shape, dtype=dtype or matrix.dtype, device=matrix.device) if out is None else out
    check_values("out", values, shape)
    check_tensors(matrix=matrix, dtype=values, index=index)
    if values.numel():
        grid, options = copy_tile(*walk)
        with on_device(matrix):
            _gather_selected_kernel[grid](
                matrix, values, index.contiguous(), rows, columns, *strides, *walk[1:], block_h, block_w,
                KIND=kind, FLAT=flat, **options,
            )  # fmt: skip
    return values
