"""max_pool: the largest element of each window, and its number there."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from .layout import check_tensors, offsets_of, on_device

BLOCK = 256  # outputs a program, 2 a thread: neighbours read the same rows
OPTIONS = dict(num_warps=4, enable_fp_fusion=True)


@triton.jit
def _max_pool_kernel(
    input_ptr,  # [planes, height, width]
    output_ptr,  # [planes, out_height, out_width]
    numbers_ptr,  # [planes, out_height, out_width]
    count,
    height,
    width,
    out_height,
    out_width,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    OFFSET: tl.constexpr,  # of the outputs: a division takes a third of the time in 32 bits
    BLOCK: tl.constexpr,
):
    WIDE: tl.constexpr = tl.float64 if input_ptr.dtype.element_ty == tl.float64 else tl.float32
    offs = tl.program_id(0).to(OFFSET) * BLOCK + tl.arange(0, BLOCK)
    out_row = offs // out_width
    plane = out_row // out_height
    top = (out_row - plane * out_height) * stride_h - padding_h
    left = (offs - out_row * out_width) * stride_w - padding_w
    plane_ptr = input_ptr + plane.to(tl.int64) * height * width
    best = tl.full((BLOCK,), float("-inf"), WIDE)
    # The first element that is not padding, should all be -inf: the least that is not below 0.
    first_h = tl.maximum(-top + dilation_h - 1, 0) // dilation_h
    first_w = tl.maximum(-left + dilation_w - 1, 0) // dilation_w
    number = (first_h * KERNEL_W + first_w).to(tl.int32)
    for k in range(KERNEL_H * KERNEL_W):
        row = top + k // KERNEL_W * dilation_h
        column = left + k % KERNEL_W * dilation_w
        inside = (offs < count) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        x = tl.load(plane_ptr + row * width + column, mask=inside, other=float("-inf")).to(WIDE)
        take = (x > best) | (x != x)
        best = tl.where(take, x, best)
        number = tl.where(take, k, number)
    tl.store(output_ptr + offs, best.to(output_ptr.dtype.element_ty), mask=offs < count)
    tl.store(numbers_ptr + offs, number.to(tl.uint8), mask=offs < count)


def max_pool_triton(
    input: torch.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    output: torch.Tensor,
    numbers: torch.Tensor,
) -> None:
    """Fills output and numbers, uint8, both contiguous [..., out_height, out_width], from input
    [..., height, width]. ceil_mode: it has shaped them, and nothing else.
    """
    check_tensors(input=input, output=output, numbers=numbers)
    count = output.numel()
    plane = input.shape[-2:].numel()
    if count:
        with on_device(input):
            _max_pool_kernel[(triton.cdiv(count, BLOCK),)](
                input.contiguous(),
                output,
                numbers,
                count,
                *input.shape[-2:],
                *output.shape[-2:],
                *stride,
                *padding,
                *dilation,
                KERNEL_H=kernel_size[0],
                KERNEL_W=kernel_size[1],
                OFFSET=offsets_of(max(count, plane) + BLOCK),
                BLOCK=BLOCK,
                **OPTIONS,
            )
