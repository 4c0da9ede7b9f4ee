"""One kernel that moves compact values and the selected entries of a matrix into each other."""

import torch
import triton
import triton.language as tl

from .launching import launch
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
def _move_kernel(
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
    mask = mask_m[:, None] & mask_n[None, :]
    if KIND == "blocks":  # past the edge of the matrix a block is padded
        mask_m, mask_n = mask_m & (row < rows), mask_n & (column < columns)
    inside = mask_m[:, None] & mask_n[None, :]
    x_ptrs = address(
        matrix_ptr, row[:, None], column[None, :], columns, stride_xm, stride_xn, KIND, FLAT
    )
    v_ptrs = values_ptr + (b * M + offs_m)[:, None] * N + offs_n[None, :]
    if MODE == "gather":
        x = tl.load(x_ptrs, mask=inside, other=0.0)
        tl.store(v_ptrs, round_to(x, values_ptr.dtype.element_ty), mask=mask)
    else:
        v = tl.load(v_ptrs, mask=inside, other=0.0)
        if MODE == "swap":
            tl.store(v_ptrs, tl.load(x_ptrs, mask=inside, other=0.0), mask=inside)
        if MODE == "add":  # in float32 (float64 where either side is), rounded once
            x = tl.load(x_ptrs, mask=inside, other=0.0)
            if x.dtype == tl.float64 or v.dtype == tl.float64:
                v = x.to(tl.float64) + v.to(tl.float64)
            else:
                v = x.to(tl.float32) + v.to(tl.float32)
        tl.store(x_ptrs, round_to(v, matrix_ptr.dtype.element_ty), mask=inside)


def move(
    mode: str,
    matrix: torch.Tensor,
    kind: str,
    index: torch.Tensor,
    block_h: int,
    block_w: int,
    values: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Gathers into values, or writes them into the selected entries of matrix.

    "copy", "add" or "swap". Returns values.

    values: contiguous; None for new ones in dtype, which a gather names. Padding of ragged blocks
    is gathered as zeros, and written nowhere.
    """
    *strides, flat = matrix_strides("matrix", matrix)
    rows, columns = matrix.shape
    walk, shape = check_layout(kind, index, block_h, block_w, rows, columns)
    if values is None:
        values = torch.empty(shape, dtype=dtype, device=matrix.device)
    check_values("values", values, shape)
    check_tensors(matrix=matrix, **{"values" if dtype is None else "dtype": values}, index=index)
    if values.numel():
        grid, options = copy_tile(*walk)
        with on_device(matrix):
            launch(
                _move_kernel, grid,
                matrix, values, index.contiguous(), rows, columns, *strides, *walk[1:],
                block_h, block_w, KIND=kind, FLAT=flat, MODE=mode, **options,
            )  # fmt: skip
    return values
