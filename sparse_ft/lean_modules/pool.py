"""Max pooling that keeps where in its window each maximum was, in one byte (torch keeps the input
and 8 bytes an output).
"""

import functools
import math
from typing import Any

import torch
from torch import nn

from .. import ops
from .._torch import direct, is_compiling
from ..annotations import AnyModule
from ..double_backward import first_order
from ..ops._library import plain
from ..ops._windows import MOST
from .hollow import hollow, stand_in
from .register import lean_for

Size = tuple[int, ...]  # a number for each dimension of a picture
# See `_new_places`.
Places = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
DIMS = {nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3}


@lean_for(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
def max_pool_forward(module: AnyModule, input: torch.Tensor) -> torch.Tensor:
    """`nn.MaxPool1d`, `nn.MaxPool2d`, `nn.MaxPool3d`; with `return_indices` torch's own.

    Kept for backward: one byte an output element, two for windows of more than 256 elements.
    """
    usual = torch.is_grad_enabled() and input.requires_grad and not is_compiling()
    if not usual or module.return_indices:
        return type(module).forward(module, input)
    dims = DIMS[type(module)]
    window = module.kernel_size, module.stride, module.padding, module.dilation
    sizes = [_tuple(size, dims) for size in window]
    if input.dim() - dims not in (1, 2) or any(len(size) != dims for size in sizes):
        return type(module).forward(module, input)  # torch says what is wrong
    if dims > 1:
        return _max_pool(input, *sizes, module.ceil_mode)
    kernel, stride, padding, dilation = sizes
    flat = (1, *kernel), (1, *stride), (0, *padding), (1, *dilation)
    return _max_pool(input.unsqueeze(-2), *flat, module.ceil_mode).squeeze(-2)


def _tuple(value: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * dims


class _MaxPool(torch.autograd.Function):
    @staticmethod
    # window: kernel_size, stride, padding, dilation, ceil_mode
    def forward(ctx: Any, input: torch.Tensor, *window: Any) -> torch.Tensor:
        ctx.like, ctx.window = hollow(input), window
        if _is_one_pass(input, window[0]):
            try:
                output, number = ops.max_pool(input, *window)
            except ValueError:
                FORWARD[2](input, *window)  # torch says what is wrong
                raise
        else:
            output, index = FORWARD[len(window[0])](input, *window)
            starts, _, numbers = _places(input, output, ctx)
            number = numbers.index_select(0, index.sub_(starts).reshape(-1)).view(index.shape)
        ctx.save_for_backward(number)
        return output

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (number,) = ctx.saved_tensors
        starts, offsets, _ = _places(grad_output, number, ctx)
        index = offsets.index_select(0, number.view(-1).int()).view(number.shape).add_(starts)
        grad_input = BACKWARD[len(ctx.window[0])](
            grad_output, stand_in(ctx.like, grad_output), *ctx.window, index
        )
        return grad_input, None, None, None, None, None


_max_pool = direct(_MaxPool)
FORWARD = {n: getattr(torch.ops.aten, f"max_pool{n}d_with_indices").default for n in (2, 3)}
BACKWARD = {
    n: getattr(torch.ops.aten, f"max_pool{n}d_with_indices_backward").default for n in (2, 3)
}


def _is_one_pass(input: torch.Tensor, kernel: Size) -> bool:
    """Whether the op serves; channels that lie side by side are torch's, which is fast there."""
    fits = len(kernel) == 2 and math.prod(kernel) <= MOST
    return fits and input.is_contiguous() and input.is_floating_point()


def _places(tensor: torch.Tensor, output: torch.Tensor, ctx: Any) -> Places:
    dims = len(ctx.window[0])
    about = tuple(ctx.like[0][-dims:]), tuple(output.shape[-dims:]), *ctx.window[:4], tensor.device
    # A dry run has tensors of its own.
    return _known_places(*about) if plain((tensor,)) else _new_places(*about)


def _new_places(
    size: Size,
    out_size: Size,
    kernel: Size,
    stride: Size,
    padding: Size,
    dilation: Size,
    device: torch.device,
) -> Places:
    """Flat positions in a plane of `size`.

    Where windows start, of a window's elements from its start, and their numbers.

    Returns int64 [*out_size] (below zero in the padding), int64 [product of kernel], and what tells
    from such a position which element it is, in the smallest dtype that holds the numbers.
    """
    starts = torch.zeros((), dtype=torch.int64, device=device)
    offsets = [0]
    for d in range(len(size)):
        pitch = math.prod(size[d + 1 :])
        first, step = -padding[d] * pitch, stride[d] * pitch
        along = torch.arange(first, first + out_size[d] * step, step, device=device)
        starts = starts[..., None] + along
        offsets = [offset + k * dilation[d] * pitch for offset in offsets for k in range(kernel[d])]
    dtype = _smallest_dtype(len(offsets))
    numbers = torch.empty(max(offsets) + 1, dtype=dtype, device=device)
    places = torch.tensor(offsets, device=device)
    numbers[places] = torch.arange(len(offsets), dtype=dtype, device=device)
    return starts, places, numbers


def _smallest_dtype(count: int) -> torch.dtype:
    """That holds the numbers below `count`."""
    if count <= 256:
        return torch.uint8
    return torch.int16 if count <= 2**15 else torch.int32


_known_places = functools.lru_cache(maxsize=32)(_new_places)
