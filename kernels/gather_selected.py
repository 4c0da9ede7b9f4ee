"""gather_selected: the selected entries of a matrix as compact values."""

import torch
import triton
import triton.language as tl

from .layout import check_layout, check_matrix, check_tensors, copy_tile, locate, on_device, round_to, tile


@triton.jit
def _gather_selected_kernel(
    matrix_ptr,  # [rows, columns]
    values_ptr,  # [num, M, N]
    index_ptr,
    rows,
    columns,
    M,
    N,
    block_h,
    block_w,
    KIND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    b, offs_m, offs_n = tile(M, N, BLOCK_M, BLOCK_N)
    row, column = locate(index_ptr, b, offs_m, offs_n, M, N, block_h, block_w, KIND)
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    inside = mask
    if KIND == "blocks":  # past the edge of the matrix a block is padded with zeros
        inside = mask & (row < rows)[:, None] & (column < columns)[None, :]
    x = tl.load(matrix_ptr + row[:, None] * columns + column[None, :], mask=inside, other=0.0)
    offs_v = (b * M + offs_m)[:, None] * N + offs_n[None, :]
    tl.store(values_ptr + offs_v, round_to(x, values_ptr.dtype.element_ty), mask=mask)


def gather_selected_triton(matrix, kind, index, block_h, block_w, *, dtype=None):
    """values[k] = matrix[row(k), column(k)] in `dtype` (the matrix's by default); padding of ragged blocks is zero."""
    check_matrix("matrix", matrix)
    rows, columns = matrix.shape
    walk, shape = check_layout(kind, index, block_h, block_w, rows, columns)
    values = torch.empty(shape, dtype=dtype or matrix.dtype, device=matrix.device)
    check_tensors(_gather_selected_kernel, matrix=matrix, dtype=values, index=index)
    if values.numel():
        grid, options = copy_tile(*walk)
        with on_device(matrix):
            _gather_selected_kernel[grid](
                matrix, values, index, rows, columns, *walk[1:], block_h, block_w, KIND=kind, **options
            )
    return values
