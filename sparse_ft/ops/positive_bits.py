"""positive_bits: where ReLU lets a gradient through, one bit each; relu_bits: with its output;
where_bits: its backward.
"""

import torch
from torch import Tensor

from . import _native
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
    if not input.is_floating_point():
        raise TypeError(f"input: expected a floating-point dtype, got {input.dtype}")
    return input.new_empty(num_bytes(input), dtype=torch.uint8)


def _relu_shapes(input: Tensor, output: Tensor) -> Tensor:
    if not input.is_floating_point():
        raise TypeError(f"input: expected a floating-point dtype, got {input.dtype}")
    alike = output.shape == input.shape and output.dtype is input.dtype
    if not (alike and output.is_contiguous()):
        expected = f"contiguous, {tuple(input.shape)} and {input.dtype} as input"
        raise ValueError(
            f"output: expected {expected}, got {tuple(output.shape)}, strides {output.stride()},"
            f" {output.dtype}"
        )
    return input.new_empty(num_bytes(input), dtype=torch.uint8)


def _where_shapes(grad: Tensor, bits: Tensor) -> Tensor:
    if not grad.is_floating_point():
        raise TypeError(f"grad: expected a floating-point dtype, got {grad.dtype}")
    check_bits("bits", bits, grad)
    return grad.new_empty(grad.shape)


def _cpu(input: Tensor, bits: Tensor) -> None:
    _native.C.positive_bits(input.contiguous(), bits, None, torch.get_num_threads())


def _relu_cpu(input: Tensor, output: Tensor, bits: Tensor) -> None:
    _native.C.positive_bits(input.contiguous(), bits, output, torch.get_num_threads())


def _where_cpu(grad: Tensor, bits: Tensor, scale: float, output: Tensor) -> None:
    grad, bits = grad.contiguous(), bits.contiguous()
    _native.C.where_bits(grad, bits, scale, output, torch.get_num_threads())


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


@op(
    "where_bits(Tensor grad, Tensor bits, float scale) -> Tensor output",
    shapes=_where_shapes,
    cpu=_where_cpu,
    triton="positive_bits.where_bits_triton",
)
def where_bits(grad: Tensor, bits: Tensor, scale: float = 1.0) -> Tensor:
    """`torch.where(flags, grad * scale, 0)`, flags as `positive_bits` packs them: the backward of
    ReLU and of dropout.

    grad: floating point, any shape; multiplied in fp32 (fp64 for fp64) and rounded once. bits:
    uint8 [ceil(numel / 8)]. Returns a contiguous tensor of the shape and dtype of grad; what is
    dropped is 0 even where grad is not finite. Raises ValueError or TypeError that names the
    argument.
    """
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    flags = (bits[:, None] >> places) & 1
    flags = flags.flatten()[: grad.numel()].view(grad.shape).bool()
    scaled = grad.to(torch.promote_types(torch.float32, grad.dtype)) * scale
    return scaled.to(grad.dtype).masked_fill(~flags, 0).contiguous()
