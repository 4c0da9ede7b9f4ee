"""positive_bits: where ReLU lets a gradient through, one bit each; relu_bits: with its output."""

import torch
from torch import Tensor

from . import _native
from ._common import check_floating
from ._registry import op, reference


def num_bytes(tensor: Tensor) -> int:
    """How many bytes hold one bit an element."""
    return (tensor.numel() + 7) // 8


def check_bits(name: str, bits: Tensor, elements: Tensor) -> None:
    """Errors of what is not one bit for each of `elements`."""
    if bits.dtype != torch.uint8:
        raise TypeError(f"{name}: expected torch.uint8, got {bits.dtype}")
    length = num_bytes(elements)
    if bits.shape != (length,):
        raise ValueError(
            f"{name}: expected shape {(length,)}, one bit an element, got {tuple(bits.shape)}"
        )


def _shapes(input: Tensor) -> Tensor:
    check_floating("input", input)
    return input.new_empty(num_bytes(input), dtype=torch.uint8)


def _relu_shapes(input: Tensor, output: Tensor) -> Tensor:
    check_floating("input", input)
    alike = output.shape == input.shape and output.dtype is input.dtype
    if not (alike and output.is_contiguous()):
        expected = f"contiguous, {tuple(input.shape)} and {input.dtype} as input"
        raise ValueError(
            f"output: expected {expected}, got {tuple(output.shape)}, strides {output.stride()},"
            f" {output.dtype}"
        )
    return input.new_empty(num_bytes(input), dtype=torch.uint8)


def _cpu(input: Tensor, bits: Tensor) -> None:
    _native.C.positive_bits(input.contiguous(), bits, None, torch.get_num_threads())


def _relu_cpu(input: Tensor, output: Tensor, bits: Tensor) -> None:
    _native.C.positive_bits(input.contiguous(), bits, output, torch.get_num_threads())


@op(
    "positive_bits(Tensor input) -> Tensor bits",
    shapes=_shapes,
    cpu=_cpu,
    triton="positive_bits.positive_bits_triton",
)
def positive_bits(input: Tensor) -> Tensor:
    """`~(input <= 0)` as uint8 [ceil(numel / 8)]: bit i % 8 of byte i // 8 is that of
    `input.flatten()[i]`; past the end 0.

    input: floating point, any shape; the bit of NaN is set, as ReLU lets its gradient through.
    Raises TypeError that names the argument.
    """
    flags = input.new_zeros(8 * num_bytes(input), dtype=torch.uint8)
    flags[: input.numel()] = ~(input.flatten() <= 0)
    places = torch.arange(8, dtype=torch.uint8, device=input.device)
    return (flags.view(-1, 8) << places).sum(1, dtype=torch.uint8)


@op(
    "relu_bits(Tensor input, Tensor(a!) output) -> Tensor bits",
    shapes=_relu_shapes,
    cpu=_relu_cpu,
    triton="positive_bits.relu_bits_triton",
)
def relu_bits(input: Tensor, output: Tensor) -> Tensor:
    """`output.copy_(input.relu())` and `positive_bits(input)`, which it returns, in one pass.

    input: floating point, any shape. output: contiguous, shape and dtype of input, perhaps input
    itself. Raises TypeError or ValueError that names the argument.
    """
    bits = reference("positive_bits")(input)
    output.copy_(input.relu())
    return bits
