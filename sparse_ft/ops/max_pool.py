"""max_pool: max pooling of planes, and which element of its window each maximum was, in
one byte.
"""

import torch

from . import _native
from ._library import define, implement, plain

SCHEMA = (
    "max_pool(Tensor input, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation,"
    " bool ceil_mode) -> (Tensor, Tensor)"
)
MOST = 256  # elements of a window that a byte can tell apart


def _check(input, kernel_size, stride, padding, dilation):
    if not input.is_floating_point():
        raise TypeError(f"input: expected a floating-point dtype, got {input.dtype}")
    if input.dim() not in (3, 4):
        raise ValueError(
            f"input: expected [C, H, W] or [N, C, H, W], got shape {tuple(input.shape)}"
        )
    sizes = dict(kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation)
    for name, size in sizes.items():
        if len(size) != 2 or min(size) < (name != "padding"):
            raise ValueError(
                f"{name}: expected two {'non-negative' if name == 'padding' else 'positive'}"
                f" numbers, got {size}"
            )
    if kernel_size[0] * kernel_size[1] > MOST:
        raise ValueError(f"kernel_size: expected at most {MOST} elements, got {tuple(kernel_size)}")
    if any(2 * p > k for p, k in zip(padding, kernel_size, strict=True)):
        raise ValueError(
            f"padding: expected at most half of kernel_size {tuple(kernel_size)}, got"
            f" {tuple(padding)}"
        )


def _out_size(input, kernel_size, stride, padding, dilation, ceil_mode):
    sizes = []
    for size, k, s, p, d in zip(
        input.shape[-2:], kernel_size, stride, padding, dilation, strict=True
    ):
        out = (size + 2 * p - d * (k - 1) - 1 + (s - 1 if ceil_mode else 0)) // s + 1
        out -= ceil_mode and (out - 1) * s >= size + p  # no window begins in the padding behind
        if size < 1 or out < 1:
            raise ValueError(
                f"input: expected planes that hold a window of {tuple(kernel_size)}, got"
                f" {tuple(input.shape)}"
            )
        sizes.append(out)
    return sizes


def max_pool_ref(input, kernel_size, stride, padding, dilation, ceil_mode):
    output, _ = _fake(input, kernel_size, stride, padding, dilation, ceil_mode)
    window = kernel_size, stride, padding, dilation, ceil_mode
    output, index = torch.ops.aten.max_pool2d_with_indices(input.contiguous(), *window)
    width, places = input.size(-1), []
    for d, flat in ((0, index // width), (1, index % width)):
        first = torch.arange(output.size(d - 2), device=input.device) * stride[d] - padding[d]
        places.append((flat - (first[:, None] if d == 0 else first)) // dilation[d])
    return output, (places[0] * kernel_size[1] + places[1]).to(torch.uint8)


def _fake(input, kernel_size, stride, padding, dilation, ceil_mode):
    _check(input, kernel_size, stride, padding, dilation)
    output = input.new_empty(
        *input.shape[:-2], *_out_size(input, kernel_size, stride, padding, dilation, ceil_mode)
    )
    return output, torch.empty_like(output, dtype=torch.uint8)


def max_pool_cpu(input, kernel_size, stride, padding, dilation, ceil_mode):
    if input.dtype not in _native.DTYPES:
        return max_pool_ref(input, kernel_size, stride, padding, dilation, ceil_mode)
    output, numbers = _fake(input, kernel_size, stride, padding, dilation, ceil_mode)
    input = input.contiguous()
    _native.C.max_pool(
        input.data_ptr(),
        _native.DTYPES[input.dtype],
        input.shape[:-2].numel(),
        input.shape[-2:],
        output.shape[-2:],
        kernel_size,
        stride,
        padding,
        dilation,
        output.data_ptr(),
        numbers.data_ptr(),
        torch.get_num_threads(),
    )
    return output, numbers


def max_pool_triton(input, kernel_size, stride, padding, dilation, ceil_mode):
    from sparse_ft.kernels import max_pool as kernels

    output, numbers = _fake(input, kernel_size, stride, padding, dilation, ceil_mode)
    kernels.max_pool_triton(
        input.contiguous(), kernel_size, stride, padding, dilation, output, numbers
    )
    return output, numbers


define(SCHEMA, fake=_fake)
_max_pool = implement("max_pool", reference=max_pool_ref, cpu=max_pool_cpu, triton=max_pool_triton)


def max_pool(input, kernel_size, stride, padding, dilation, ceil_mode=False):
    """`F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)`, exactly, and the
    numbers of the maxima.

    input: [C, H, W] or [N, C, H, W], floating point. kernel_size (256 elements at most), stride,
    padding, dilation: two numbers each. Returns the output, contiguous, and uint8 of its shape: row
    * kernel_size[1] + column, in the window, of the first of the largest elements, or of the last
    NaN. Raises ValueError or TypeError that names the argument.
    """
    if plain((input,)):
        return _max_pool(input, kernel_size, stride, padding, dilation, ceil_mode)
    return torch.ops.sparse_ft.max_pool(input, kernel_size, stride, padding, dilation, ceil_mode)
