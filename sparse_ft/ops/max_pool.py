"""max_pool: max pooling of planes, and which element of its window each maximum was, in
one byte.
"""

import torch
from torch import Tensor

from . import _native
from ._registry import launcher, op

Pair = list[int] | tuple[int, int]  # along the height, along the width

MOST = 256  # elements of a window that a byte can tell apart


def _shapes(
    input: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    _check(input, kernel_size, stride, padding, dilation)
    sizes = [
        _out_size(size, kernel_size[d], stride[d], padding[d], dilation[d], ceil_mode)
        for d, size in enumerate(input.shape[-2:])
    ]
    if min(sizes) < 1:
        raise ValueError(
            f"input: expected planes that hold a window of {tuple(kernel_size)}, got"
            f" {tuple(input.shape)}"
        )
    output = input.new_empty(*input.shape[:-2], *sizes)
    return output, torch.empty_like(output, dtype=torch.uint8)


def _check(input: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> None:
    if not input.is_floating_point():
        raise TypeError(f"input: expected a floating-point dtype, got {input.dtype}")
    if input.dim() not in (3, 4):
        raise ValueError(
            f"input: expected [C, H, W] or [N, C, H, W], got shape {tuple(input.shape)}"
        )
    _check_pair("kernel_size", kernel_size, 1)
    _check_pair("stride", stride, 1)
    _check_pair("padding", padding, 0)
    _check_pair("dilation", dilation, 1)
    if kernel_size[0] * kernel_size[1] > MOST:
        raise ValueError(f"kernel_size: expected at most {MOST} elements, got {tuple(kernel_size)}")
    if any(2 * p > k for p, k in zip(padding, kernel_size, strict=True)):
        raise ValueError(
            f"padding: expected at most half of kernel_size {tuple(kernel_size)}, got"
            f" {tuple(padding)}"
        )


def _check_pair(name: str, pair: Pair, least: int) -> None:
    if len(pair) != 2 or min(pair) < least:
        expected = "positive" if least else "non-negative"
        raise ValueError(f"{name}: expected two {expected} numbers, got {pair}")


def _out_size(
    size: int, kernel_size: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> int:
    """Along one dimension; 0 where no window fits."""
    if size < 1:
        return 0
    room = size + 2 * padding - dilation * (kernel_size - 1) - 1
    if ceil_mode:
        room += stride - 1
    out = room // stride + 1
    if ceil_mode and (out - 1) * stride >= size + padding:
        out -= 1  # no window begins in the padding behind
    return out


def _cpu(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    output: Tensor,
    numbers: Tensor,
) -> None:
    window = kernel_size, stride, padding, dilation
    threads = torch.get_num_threads()
    _native.C.max_pool(input.contiguous(), *window, output, numbers, threads)


def _triton(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    output: Tensor,
    numbers: Tensor,
) -> None:
    launch = launcher("max_pool.max_pool_triton")
    launch(input.contiguous(), kernel_size, stride, padding, dilation, output, numbers)


@op(
    "max_pool(Tensor input, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation,"
    " bool ceil_mode) -> (Tensor output, Tensor numbers)",
    shapes=_shapes,
    cpu=_cpu,
    triton=_triton,
)
def max_pool(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """`F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)`, exactly, and the
    numbers of the maxima.

    input: [C, H, W] or [N, C, H, W], floating point. kernel_size (256 elements at most), stride,
    padding, dilation: two numbers each. Returns the output, contiguous, and uint8 of its shape: row
    * kernel_size[1] + column, in the window, of the first of the largest elements, or of the last
    NaN. Raises ValueError or TypeError that names the argument.
    """
    output, index = torch.ops.aten.max_pool2d_with_indices(
        input.contiguous(), kernel_size, stride, padding, dilation, ceil_mode
    )
    height, width = output.shape[-2:]
    first_row = torch.arange(height, device=input.device) * stride[0] - padding[0]
    first_column = torch.arange(width, device=input.device) * stride[1] - padding[1]
    row = (index // input.size(-1) - first_row[:, None]) // dilation[0]
    column = (index % input.size(-1) - first_column) // dilation[1]
    return output, (row * kernel_size[1] + column).to(torch.uint8)
