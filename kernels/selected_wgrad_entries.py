"""selected_wgrad of single entries.

A dot product over the tokens for each, or strips of the dense product.

Dots read each feature token by token, so the operands are transposed first, as many tokens at a
time as the workspace
holds: the transposed part is read again from the second-level cache, not from memory.
"""

import torch
import triton
import triton.language as tl

from .launching import launch
from .layout import TRITON_DTYPES, cdiv, on_device, round_to
from .selected_wgrad_gemm import WORKSPACE, accumulator, product
from .selected_wgrad_tables import strip_height, strips

# Share of the entries from which strips beat dots, by bytes an operand; arithmetic, not measured
# yet. H200, 4096 x 4096, 8192
# tokens: strips 375 to 388 us at any share in bf16, dots 62 us (transposing) + 51 to 66 us for each
# 0.1 %; in float32 the GEMM takes 5.5 ms, dots 125 us + 160 us for each 0.1 %; in float64 4.6 ms
# against 250 us + 310 us. Almost the same at other shapes.
STRIPS_FROM = {2: 0.005, 4: 0.03, 8: 0.014}
# Entries for each row and column below which their own features are transposed, not all: 64 bytes
# of sectors a token for an entry in bf16, against 4 bytes read and written for each feature.
COMPACT_BELOW = 1 / 16
BLOCK_T = 128  # tokens of a run: 256 bytes of 16-bit values, an entry for half a warp
# Tokens of a part: a grid, of 64 of them, ends there in its second dimension.
MOST_T = 65535 // 2 * BLOCK_T


@triton.jit
def _transpose_kernel(
    x_ptr,  # [tokens, features]
    index_ptr,  # [count], the entries
    out_ptr,  # [count, length]
    begin,  # first token
    tokens,
    count,
    columns,
    stride_xt,
    length,
    FEATURES: tl.constexpr,  # of the operand: "all", or the "rows" or "columns" of the entries
    BLOCK_F: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    offs_f = tl.program_id(0).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)
    mask_f = offs_f < count
    feature = offs_f
    if FEATURES != "all":
        position = tl.load(index_ptr + offs_f, mask=mask_f, other=0).to(tl.int64)
        feature = position // columns
        if FEATURES == "columns":
            feature = position - feature * columns
    offs_t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    t = begin + offs_t.to(tl.int64)
    x_ptrs = x_ptr + (t[:, None] * stride_xt + feature[None, :])
    x = tl.load(x_ptrs, mask=(t < tokens)[:, None] & mask_f[None, :], other=0.0)
    tl.store(
        out_ptr + (offs_f[:, None] * length + offs_t[None, :]), tl.trans(x), mask=mask_f[:, None]
    )


@triton.jit
def _dots_kernel(
    g_ptr,  # [rows, length], or [nnz, length] if COMPACT; zero past the last token
    x_ptr,  # [columns, length], or [nnz, length]
    index_ptr,  # [nnz]
    sums_ptr,  # [nnz], of the tokens before; unread and unwritten if there is only one part
    values_ptr,  # [nnz]
    columns,
    length,
    padded,  # tokens of this part, a multiple of BLOCK_T
    nnz,
    COMPACT: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    MATH: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    offs_e = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    mask = offs_e < nnz
    if COMPACT:
        row = tl.where(mask, offs_e, 0)
        column = row
    else:
        position = tl.load(index_ptr + offs_e, mask=mask, other=0).to(tl.int64)
        row = position // columns
        column = position - row * columns
    offs_t = tl.arange(0, BLOCK_T)[None, :]
    g_ptrs = g_ptr + row[:, None] * length + offs_t
    x_ptrs = x_ptr + column[:, None] * length + offs_t
    acc = tl.zeros((BLOCK_E, BLOCK_T), MATH)
    for t in range(0, padded, BLOCK_T):
        acc += tl.load(g_ptrs + t).to(MATH) * tl.load(x_ptrs + t).to(MATH)
    value = tl.sum(acc, axis=1)
    if not FIRST:
        value += tl.load(sums_ptr + offs_e, mask=mask, other=0.0)
    if LAST:
        if ACCUMULATE:
            value += tl.load(values_ptr + offs_e, mask=mask, other=0.0).to(MATH)
        tl.store(values_ptr + offs_e, round_to(value, values_ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(sums_ptr + offs_e, value, mask=mask)


@triton.jit
def _take_kernel(
    strip_ptr,  # rows of the dense product, contiguous
    index_ptr,  # [nnz], flat positions in the whole matrix
    values_ptr,  # [nnz]
    origin,  # flat position of the strip's first value
    nnz,
    ACCUMULATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < nnz
    position = tl.load(index_ptr + offs, mask=mask, other=0).to(tl.int64) - origin
    value = tl.load(strip_ptr + position, mask=mask, other=0.0)
    if ACCUMULATE:
        value += tl.load(values_ptr + offs, mask=mask, other=0.0).to(value.dtype)
    tl.store(values_ptr + offs, round_to(value, values_ptr.dtype.element_ty), mask=mask)


def _part(tokens: int, rows: int, columns: int, *itemsizes: int) -> int:
    """Tokens that are transposed at a time.

    As many as the workspace holds, a multiple of BLOCK_T.
    """
    fits = WORKSPACE // (rows * itemsizes[0] + columns * itemsizes[1]) // BLOCK_T * BLOCK_T
    return min(max(fits, BLOCK_T), MOST_T, cdiv(tokens, BLOCK_T) * BLOCK_T)


def dots(
    values: torch.Tensor,
    grad_output: torch.Tensor,
    input: torch.Tensor,
    index: torch.Tensor,
    accumulate: bool,
) -> None:
    """values [nnz] (+)= one dot product over the tokens for each entry.

    Tokens are added in the same order on every GPU.
    """
    (tokens, rows), columns, nnz = grad_output.shape, input.size(1), values.numel()
    math = accumulator(grad_output, input)
    compact = nnz < COMPACT_BELOW * (rows + columns)
    counts = (nnz, nnz) if compact else (rows, columns)
    length = _part(tokens, *counts, grad_output.element_size(), input.element_size())
    packed = [x.new_empty(count, length) for x, count in zip((grad_output, input), counts)]
    sums = values if length >= tokens else values.new_empty(nnz, dtype=math)
    with on_device(values):
        for begin in range(0, max(tokens, 1), max(length, 1)):
            padded = min(length, cdiv(tokens - begin, BLOCK_T) * BLOCK_T)
            for x, count, out, which in zip(
                (grad_output, input), counts, packed, ("rows", "columns")
            ):
                launch(
                    _transpose_kernel, (cdiv(count, 64), padded // 64),
                    x, index, out, begin, tokens, count, columns, x.stride(0), length,
                    FEATURES=which if compact else "all", BLOCK_F=64, BLOCK_T=64, num_warps=4,
                )  # fmt: skip
            launch(
                _dots_kernel, (cdiv(nnz, 32),),
                *packed, index, sums, values, columns, length, padded, nnz,
                COMPACT=compact, FIRST=begin == 0, LAST=begin + length >= tokens,
                ACCUMULATE=accumulate, MATH=TRITON_DTYPES[math],
                BLOCK_E=32, BLOCK_T=BLOCK_T, num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip


def strips_of_entries(
    grad_output: torch.Tensor, input: torch.Tensor, index: torch.Tensor
) -> list[tuple[int, int, int, int]]:
    """`strips` of the height that the workspace holds."""
    rows, columns = grad_output.size(1), input.size(1)
    a_row = columns * accumulator(grad_output, input).itemsize
    return strips(index, rows, columns, strip_height(rows, WORKSPACE // a_row))


def by_strips(
    values: torch.Tensor,
    grad_output: torch.Tensor,
    input: torch.Tensor,
    index: torch.Tensor,
    accumulate: bool,
) -> None:
    """values [nnz] (+)= entries of strips of the dense product, each dropped once its entries are
    taken.
    """
    columns = input.size(1)
    for first_row, last_row, first, last in strips_of_entries(grad_output, input, index):
        strip = product(grad_output[:, first_row:last_row], input)
        with on_device(values):
            launch(
                _take_kernel, (cdiv(last - first, 1024),),
                strip, index[first:last], values[first:last], first_row * columns, last - first,
                ACCUMULATE=accumulate, BLOCK=1024, num_warps=4,
            )  # fmt: skip


def wgrad_of_entries(
    values: torch.Tensor,
    grad_output: torch.Tensor,
    input: torch.Tensor,
    index: torch.Tensor,
    accumulate: bool,
) -> None:
    """values [nnz] (+)= the entries at sorted flat positions `index`, by what the density makes
    cheaper.
    """
    dense = dense_entries(grad_output, input, index)
    (by_strips if dense else dots)(values, grad_output, input, index, accumulate)


def dense_entries(grad_output: torch.Tensor, input: torch.Tensor, index: torch.Tensor) -> bool:
    """Whether there are so many entries that strips of the dense product are cheaper."""
    share = index.numel() / (grad_output.size(1) * input.size(1))
    return share >= STRIPS_FROM[torch.promote_types(grad_output.dtype, input.dtype).itemsize]
