"""max_pool: max pooling of planes, and which element of its window each maximum was, in
one byte.
"""

import torch
from torch import Tensor

from . import _native
from ._registry import op
from ._windows import Pair, out_sizes


def _shapes(
    input: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    sizes = out_sizes(input, kernel_size, stride, padding, dilation, ceil_mode)
    output = input.new_empty(*input.shape[:-2], *sizes)
    return output, torch.empty_like(output, dtype=torch.uint8)


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


@op(
    "max_pool(Tensor input, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation,"
    " bool ceil_mode) -> (Tensor output, Tensor numbers)",
    shapes=_shapes,
    cpu=_cpu,
    triton="max_pool.max_pool_triton",
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
