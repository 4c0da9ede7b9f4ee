"""What the library's GEMM serves of selected_wgrad.

Rows and columns of any dtype, and blocks wider than 16 bits.

Gather, then GEMM. A kernel that gathers inside its loads cannot win here: it saves the write and
the read of the gathered features (13 MB of 80 MB at 10 % of 4096 columns and 8192 bf16 tokens, some
3 of 35 us) and one launch, and pays with copies of 2 bytes in place of 16 for every panel that it
reads again. By arithmetic, not measured yet.
"""

import torch

from .gather_selected import gather_selected_triton
from .layout import cdiv
from .selected_wgrad_tables import block_strips, panels, strip_height

WORKSPACE = 32 << 20  # bytes of features gathered at a time
ALIGNED = 16  # bytes on which the operands of the library's fast products start, token by token
SHORT = torch.bfloat16, torch.float16
# From where on strips of the dense product are cheaper than blocks alone; arithmetic, not measured
# yet. 16-bit blocks by the features that programs load for a token, over rows times columns: 80 %
# of 5.5 TB/s of cache against 2 FLOP an entry at 87 % of 790 TFLOP/s; blocks of 64 x 64 reach it at
# 33 %. Wider ones by their share: each panel is a thin product by itself.
DENSE_LOADS, DENSE_SHARE = 1 / 156, 0.6


def accumulator(*operands: torch.Tensor) -> torch.dtype:
    dtype = torch.float32
    for operand in operands:
        dtype = torch.promote_types(dtype, operand.dtype)
    return dtype


def product(grad_output: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
    """grad_output.T @ input, summed and returned in float32 (float64 for float64)."""
    dtype = grad_output.dtype
    if dtype in SHORT and dtype == input.dtype and input.is_cuda:
        if grad_output.numel() and input.numel():
            return torch.mm(grad_output.t(), input, out_dtype=torch.float32)
    wide = accumulator(grad_output, input)
    return grad_output.to(wide).t() @ input.to(wide)


def wgrad_of_rows(
    grad_output: torch.Tensor, input: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    """[R, columns].

    A grad_output that holds R features is taken as gathered already, to be shared between calls.
    """
    return product(_features(grad_output, index), input)


def wgrad_of_columns(
    grad_output: torch.Tensor, input: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    """[rows, C].

    An input that holds C features is taken as gathered already, to be shared between calls.
    """
    return product(grad_output, _features(input, index))


def _features(operand: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[tokens, R], each token on 16 bytes: from elsewhere the library loads an element at a
    time.
    """
    count = index.numel()
    missing = -count % (ALIGNED // operand.element_size())
    if operand.size(1) == count:
        return aligned(operand, missing)
    if not missing:
        return operand.index_select(1, index)  # takes the host half as long as a launch of ours
    # Its last feature again, so often; made each time, for a table would be held by the memory of
    # whichever graph is captured first.
    more = torch.cat([index, index[-1:].expand(missing)])
    return gather_selected_triton(operand, "columns", more, 1, 1)[:, :count]


def aligned(operand: torch.Tensor, missing: int) -> torch.Tensor:
    """A few features, [tokens, R], each token on 16 bytes; the copy is nothing to the product,
    which reads all of the other operand.
    """
    between_tokens = operand.stride(0) * operand.element_size()
    if between_tokens % ALIGNED == 0 and operand.data_ptr() % ALIGNED == 0:
        return operand
    tokens, count = operand.shape
    return operand.new_empty(tokens, count + missing)[:, :count].copy_(operand)


def blocks_by_panel(
    values: torch.Tensor,
    grad_output: torch.Tensor,
    input: torch.Tensor,
    index: torch.Tensor,
    block_h: int,
    block_w: int,
    accumulate: bool,
) -> None:
    """values [n, block_h, block_w] (+)= one GEMM a panel.

    Its features times those of its blocks, as many as fit.
    """
    shared, order, others, groups, *_ = panels(index, block_h, block_w)
    operands, sizes = (grad_output, input), (block_h, block_w)
    panel_of, gathered_of = operands[shared], operands[1 - shared]
    size, width = sizes[shared], sizes[1 - shared]
    a_block = max(1, input.size(0)) * width * gathered_of.element_size()
    at_once = max(1, WORKSPACE // a_block)
    for panel, first, count in groups:
        features = panel_of[:, panel * size : (panel + 1) * size]
        for start in range(first, first + count, at_once):
            some = slice(start, min(start + at_once, first + count))
            gathered, inside = _blocks_of(gathered_of, others[some], width)
            blocks = values.new_zeros(
                len(inside), size, width, dtype=accumulator(grad_output, input)
            )
            taken = product(features, gathered).unflatten(1, (-1, width)).transpose(0, 1)
            blocks[:, : features.size(1)] = taken.where(inside[:, None], 0)
            blocks = blocks.transpose(1, 2) if shared else blocks
            kept = order[some].long()
            values[kept] = (values[kept] + blocks if accumulate else blocks).to(values.dtype)


def _blocks_of(
    operand: torch.Tensor, blocks: torch.Tensor, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The features of some blocks, [tokens, len(blocks) * width], and which are inside of the
    matrix.
    """
    feature = blocks.long()[:, None] * width + torch.arange(width, device=blocks.device)
    inside = feature < operand.size(1)
    return gather_selected_triton(
        operand, "columns", feature.where(inside, 0).flatten(), 1, 1
    ), inside


def dense_blocks(
    grad_output: torch.Tensor, input: torch.Tensor, index: torch.Tensor, block_h: int, block_w: int
) -> bool:
    """Whether there are so many blocks that strips of the dense product are cheaper."""
    area = grad_output.size(1) * input.size(1)
    if grad_output.dtype == input.dtype and input.element_size() == 2:
        return panels(index, block_h, block_w).loads > DENSE_LOADS * area
    return index.size(0) * block_h * block_w > DENSE_SHARE * area


def strips_of_blocks(
    grad_output: torch.Tensor, input: torch.Tensor, index: torch.Tensor, block_h: int
) -> list[tuple]:
    """`block_strips` of the height that the workspace holds."""
    rows = grad_output.size(1)
    a_row = input.size(1) * accumulator(grad_output, input).itemsize
    height = strip_height(rows, WORKSPACE // a_row, unit=block_h) // block_h
    return block_strips(index, cdiv(rows, block_h), height)


def blocks_by_strips(
    values: torch.Tensor,
    grad_output: torch.Tensor,
    input: torch.Tensor,
    index: torch.Tensor,
    block_h: int,
    block_w: int,
    accumulate: bool,
) -> None:
    """values [n, block_h, block_w] (+)= blocks of strips of the dense product, each dropped once
    its blocks are taken.
    """
    wide = accumulator(grad_output, input)
    for top, bottom, first, last, blocks in strips_of_blocks(grad_output, input, index, block_h):
        strip = product(grad_output[:, top * block_h : bottom * block_h], input)
        into = None if accumulate else values[first:last]
        taken = gather_selected_triton(
            strip, "blocks", blocks, block_h, block_w, dtype=wide, out=into
        )
        if accumulate:
            values[first:last] += taken
