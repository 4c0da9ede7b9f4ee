"""The windows of a pooling: how many there are, and which are refused."""

from torch import Tensor

from ._common import check_floating

Pair = list[int] | tuple[int, int]  # along the height, along the width

MOST = 256  # elements of a window that a byte can tell apart


def out_sizes(
    input: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> list[int]:
    """Height and width of the output, as `F.max_pool2d` has them.

    Raises ValueError or TypeError that names the argument.
    """
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
    return sizes


def _check(input: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> None:
    check_floating("input", input)
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
