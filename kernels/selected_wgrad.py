"""selected_wgrad: the selected entries of grad_output.T @ input, with no dense product and no atomics."""

import torch
import triton
import triton.language as tl

from .layout import INTERPRETED, TRITON_DTYPES, check_layout, check_tensors, check_values, locate, on_device, round_to, tile


@triton.jit
def _selected_wgrad_tile_kernel(
    g_ptr,  # grad_output [tokens, rows]
    x_ptr,  # input [tokens, columns]
    index_ptr,
    values_ptr,  # [num, M, N]
    tokens,
    rows,
    columns,
    stride_gt,
    stride_xt,
    M,
    N,
    block_h,
    block_w,
    KIND: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    b, offs_m, offs_n = tile(M, N, BLOCK_M, BLOCK_N)
    row, column = locate(index_ptr, b, offs_m, offs_n, M, N, block_h, block_w, KIND)
    offs_t = tl.arange(0, BLOCK_T).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float64 if DOT == tl.float64 else tl.float32)
    for t in range(0, tokens, BLOCK_T):
        offs = (t + offs_t)[:, None]
        # rows and columns past the matrix read as zero: the padding of a ragged block
        g_mask = (offs < tokens) & (row < rows)[None, :]
        x_mask = (offs < tokens) & (column < columns)[None, :]
        g = tl.load(g_ptr + offs * stride_gt + row[None, :], mask=g_mask, other=0.0).to(DOT)
        x = tl.load(x_ptr + offs * stride_xt + column[None, :], mask=x_mask, other=0.0).to(DOT)
        acc = tl.dot(tl.trans(g), x, acc, input_precision="ieee", out_dtype=acc.dtype)
    v_ptrs = values_ptr + (b * M + offs_m)[:, None] * N + offs_n[None, :]
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    if ACCUMULATE:
        acc += tl.load(v_ptrs, mask=mask, other=0.0).to(acc.dtype)
    tl.store(v_ptrs, round_to(acc, values_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _selected_wgrad_entries_kernel(
    g_ptr,  # grad_output [tokens, rows]
    x_ptr,  # input [tokens, columns]
    index_ptr,  # [nnz]
    values_ptr,  # [nnz]
    tokens,
    columns,
    stride_gt,
    stride_xt,
    nnz,
    ACCUMULATE: tl.constexpr,
    MATH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    offs_e = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    mask_e = offs_e < nnz
    position = tl.load(index_ptr + offs_e, mask=mask_e, other=0).to(tl.int64)
    row = position // columns
    column = position - row * columns
    offs_t = tl.arange(0, BLOCK_T).to(tl.int64)
    acc = tl.zeros((BLOCK_T, BLOCK_E), MATH)
    for t in range(0, tokens, BLOCK_T):
        offs = (t + offs_t)[:, None]
        mask = (offs < tokens) & mask_e[None, :]
        g = tl.load(g_ptr + offs * stride_gt + row[None, :], mask=mask, other=0.0).to(MATH)
        x = tl.load(x_ptr + offs * stride_xt + column[None, :], mask=mask, other=0.0).to(MATH)
        acc += g * x
    value = tl.sum(acc, axis=0)
    if ACCUMULATE:
        value += tl.load(values_ptr + offs_e, mask=mask_e, other=0.0).to(MATH)
    tl.store(values_ptr + offs_e, round_to(value, values_ptr.dtype.element_ty), mask=mask_e)


# Largest (BLOCK_M, BLOCK_N, BLOCK_T, num_stages) by bytes an operand. Of the tiles compiled for sm_80, 90 and 100 over
# every kind, with aligned and odd sizes, copied and accumulated (48 compiles each), the largest without a spill: 64x128
# spills for odd sizes, float32 (FFMA, as "ieee" asks) in 3 stages too. 64 rows are one wgmma or tcgen05 panel.
TILES = {2: (64, 64, 64, 4), 4: (64, 64, 16, 2), 8: (32, 32, 16, 4)}


def _launch_tiles(values, walk, grad_output, input, kind, index, block_h, block_w, accumulate):
    dot = torch.promote_types(grad_output.dtype, input.dtype)
    most_m, most_n, block_t, num_stages = TILES[dot.itemsize]
    num, M, N = walk
    block_m = min(max(triton.next_power_of_2(M), 16), most_m)  # tl.dot takes no side below 16
    block_n = min(max(triton.next_power_of_2(N), 16), most_n)
    if INTERPRETED.value and dot == torch.bfloat16:
        dot = torch.float32  # the interpreter's tl.dot multiplies the raw bits of bfloat16
    if kind == "columns" and input.size(1) == index.numel():
        kind = "all"  # input holds the selected columns only, in index order
    grid = (num * triton.cdiv(M, block_m) * triton.cdiv(N, block_n),)
    _selected_wgrad_tile_kernel[grid](
        grad_output, input, index, values, input.size(0), grad_output.size(1), input.size(1),
        grad_output.stride(0), input.stride(0), M, N, block_h, block_w,
        KIND=kind, ACCUMULATE=accumulate, DOT=TRITON_DTYPES[dot],
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_T=block_t, num_warps=4, num_stages=num_stages, enable_fp_fusion=True,
    )  # fmt: skip


def _launch_entries(values, grad_output, input, index, accumulate):
    math = tl.float64 if torch.float64 in (grad_output.dtype, input.dtype) else tl.float32
    _selected_wgrad_entries_kernel[(triton.cdiv(values.numel(), 32),)](
        grad_output, input, index, values, input.size(0), input.size(1),
        grad_output.stride(0), input.stride(0), values.numel(),
        ACCUMULATE=accumulate, MATH=math, BLOCK_T=64, BLOCK_E=32, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip


def _row_major(name, operand):
    """[tokens, features] with last stride 1: as it is, or a copy of an operand that is transposed or expanded."""
    if operand.dim() != 2:
        raise ValueError(f"{name} must be [tokens, features], got {list(operand.shape)}")
    return operand if operand.size(1) == 1 or operand.stride(1) == 1 else operand.contiguous()


def _wgrad(values, grad_output, input, kind, index, block_h, block_w, accumulate):
    grad_output, input = _row_major("grad_output", grad_output), _row_major("input", input)
    if grad_output.size(0) != input.size(0):
        raise ValueError(f"input must have the {grad_output.size(0)} tokens of grad_output, got {input.size(0)}")
    walk, shape = check_layout(kind, index, block_h, block_w, grad_output.size(1), input.size(1))
    check_values("values_grad", values, shape)
    check_tensors(grad_output=grad_output, input=input, values_grad=values, index=index)
    packed, index = values.contiguous(), index.contiguous()
    if values.numel():
        with on_device(grad_output):
            if kind == "entries":
                _launch_entries(packed, grad_output, input, index, accumulate)
            else:
                _launch_tiles(packed, walk, grad_output, input, kind, index, block_h, block_w, accumulate)
    if packed is not values:
        values.copy_(packed)


def selected_wgrad_triton(grad_output, input, kind, index, block_h, block_w, *, dtype=None):
    """values[k] = sum_t grad_output[t, row(k)] * input[t, column(k)], summed in float32 (float64 for float64).

    grad_output [tokens, rows], input [tokens, columns] (kind "columns": or the selected ones only, [tokens, C]).
    `dtype` is that of the sum by default. The same bits at every run: one program adds all tokens of its values.
    """
    _, shape = check_layout(kind, index, block_h, block_w, grad_output.size(-1), input.size(-1))
    dtype = dtype or torch.promote_types(torch.float32, grad_output.dtype)
    values = torch.empty(shape, dtype=dtype, device=grad_output.device)
    _wgrad(values, grad_output, input, kind, index, block_h, block_w, accumulate=False)
    return values


def selected_wgrad_triton_(values_grad, grad_output, input, kind, index, block_h, block_w):
    """values_grad += selected_wgrad(...), added before the one rounding."""
    _wgrad(values_grad, grad_output, input, kind, index, block_h, block_w, accumulate=True)
