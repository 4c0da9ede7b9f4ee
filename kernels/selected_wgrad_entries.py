"""selected_wgrad of single entries.

A dot product over the tokens for each, or strips of the dense product.

Dots read each feature token by token, so the operands are transposed first, as many tokens at a
time as the workspace
holds: the transposed part is read again from the second-level cache, not from memory.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .launching import launch
from .layout import TRITON_DTYPES, cdiv, on_device, round_to
from .selected_wgrad_gemm import WORKSPACE, accumulator, product
from .selected_wgrad_tables import strip_height, strips

Tensors = tuple[torch.Tensor, torch.Tensor]  # of grad_output and of input
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
def _transpose(
    x_ptr,
    index_ptr,
    out_ptr,
    part,  # which BLOCK_F of its features
    begin,
    tokens,
    count,
    columns,
    stride_xt,
    length,
    FEATURES: tl.constexpr,  # of the operand: "all", or the "rows" or "columns" of the entries
    BLOCK_F: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """A tile of one operand: x [tokens, features] to out [count, length]."""
    offs_f = part.to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)
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
def _transpose_kernel(
    g_ptr,  # [tokens, rows]
    x_ptr,  # [tokens, columns]
    index_ptr,  # [nnz], the entries
    packed_g_ptr,  # [count_g, length]
    packed_x_ptr,  # [count_x, length]
    begin,  # first token
    tokens,
    count_g,
    count_x,
    columns,
    stride_gt,
    stride_xt,
    length,
    COMPACT: tl.constexpr,  # the rows and the columns of the entries, not all
    BLOCK_F: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    ROWS: tl.constexpr = "rows" if COMPACT else "all"
    COLUMNS: tl.constexpr = "columns" if COMPACT else "all"
    part = tl.program_id(0)
    parts_g = tl.cdiv(count_g, BLOCK_F)
    if part < parts_g:
        _transpose(g_ptr, index_ptr, packed_g_ptr, part, begin, tokens, count_g, columns,
                   stride_gt, length, ROWS, BLOCK_F, BLOCK_T)  # fmt: skip
    else:
        _transpose(x_ptr, index_ptr, packed_x_ptr, part - parts_g, begin, tokens, count_x, columns,
                   stride_xt, length, COLUMNS, BLOCK_F, BLOCK_T)  # fmt: skip


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


class Dots(NamedTuple):
    """How the dot products of an index are taken on such operands."""

    compact: bool
    counts: tuple[int, int]  # features that are transposed, of grad_output and of input
    length: int  # tokens that are transposed at a time
    math: torch.dtype

    @classmethod
    def of(cls, grad_output: torch.Tensor, input: torch.Tensor, index: torch.Tensor) -> "Dots":
        (tokens, rows), columns, nnz = grad_output.shape, input.size(1), index.numel()
        compact = nnz < COMPACT_BELOW * (rows + columns)
        counts = (nnz, nnz) if compact else (rows, columns)
        length = _part(tokens, *counts, grad_output.element_size(), input.element_size())
        return cls(compact, counts, length, accumulator(grad_output, input))

    def packed(
        self, grad_output: torch.Tensor, input: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Room for what is transposed at a time."""
        count_g, count_x = self.counts
        return grad_output.new_empty(count_g, self.length), input.new_empty(count_x, self.length)

    def transposing(
        self, operands: Tensors, index: torch.Tensor, packed: Tensors, begin: int
    ) -> tuple[tuple, dict[str, Any]]:
        """(kernel, grid and arguments, constants) of the transposition of the tokens from `begin`
        on.
        """
        grad_output, input = operands
        tokens, (count_g, count_x) = grad_output.size(0), self.counts
        grid = cdiv(count_g, 64) + cdiv(count_x, 64), self._padded(tokens, begin) // 64
        strides = grad_output.stride(0), input.stride(0)
        arguments = (
            grad_output, input, index, *packed, begin, tokens, count_g, count_x, input.size(1),
            *strides, self.length,
        )  # fmt: skip
        constants = dict(COMPACT=self.compact, BLOCK_F=64, BLOCK_T=64, num_warps=4)
        return (_transpose_kernel, grid, *arguments), constants

    def adding(
        self,
        operands: Tensors,
        index: torch.Tensor,
        packed: Tensors,
        begin: int,
        sums: torch.Tensor,
        values: torch.Tensor,
        accumulate: bool,
    ) -> tuple[tuple, dict[str, Any]]:
        """The same of the products of what was transposed."""
        grad_output, input = operands
        tokens, nnz = grad_output.size(0), values.numel()
        padded = self._padded(tokens, begin)
        arguments = *packed, index, sums, values, input.size(1), self.length, padded, nnz
        constants = dict(
            COMPACT=self.compact,
            FIRST=begin == 0,
            LAST=begin + self.length >= tokens,
            ACCUMULATE=accumulate,
            MATH=TRITON_DTYPES[self.math],
            BLOCK_E=32,
            BLOCK_T=BLOCK_T,
            num_warps=4,
            enable_fp_fusion=True,
        )
        return (_dots_kernel, (cdiv(nnz, 32),), *arguments), constants

    def _padded(self, tokens: int, begin: int) -> int:
        """Tokens of the part from `begin` on, a multiple of BLOCK_T."""
        return min(self.length, cdiv(tokens - begin, BLOCK_T) * BLOCK_T)


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
    how, operands = Dots.of(grad_output, input, index), (grad_output, input)
    tokens, packed = grad_output.size(0), how.packed(*operands)
    sums = values if how.length >= tokens else values.new_empty(values.numel(), dtype=how.math)
    with on_device(values):
        for begin in range(0, max(tokens, 1), max(how.length, 1)):
            arguments, constants = how.transposing(operands, index, packed, begin)
            launch(*arguments, **constants)
            arguments, constants = how.adding(
                operands, index, packed, begin, sums, values, accumulate
            )
            launch(*arguments, **constants)


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
        arguments, constants = taking(
            strip, index[first:last], values[first:last], first_row * columns, accumulate
        )
        with on_device(values):
            launch(*arguments, **constants)


def taking(
    strip: torch.Tensor, index: torch.Tensor, values: torch.Tensor, origin: int, accumulate: bool
) -> tuple[tuple, dict[str, Any]]:
    """Arguments and constants of the launch that takes a strip's entries.

    origin: flat position of the strip's first value in the whole matrix.
    """
    nnz = values.numel()
    constants = dict(ACCUMULATE=accumulate, BLOCK=1024, num_warps=4)
    return (_take_kernel, (cdiv(nnz, 1024),), strip, index, values, origin, nnz), constants


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
