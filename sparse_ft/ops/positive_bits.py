"""positive_bits: where ReLU lets a gradient through, one bit each; relu_bits: with its output;
where_bits: its backward.
"""

import torch

from . import _native
from ._library import define, implement, plain, wrote

SCHEMA = "positive_bits(Tensor input) -> Tensor"
RELU_SCHEMA = "relu_bits(Tensor input, Tensor(a!) output) -> Tensor"
WHERE_SCHEMA = "where_bits(Tensor grad, Tensor bits, float scale) -> Tensor"


def _check(input):
    if not input.is_floating_point():
        raise TypeError(f"input: expected a floating-point dtype, got {input.dtype}")


def _check_relu(input, output):
    _check(input)
    if output.shape != input.shape or output.dtype != input.dtype or not output.is_contiguous():
        expected = f"contiguous, {tuple(input.shape)} and {input.dtype} as input"
        raise ValueError(
            f"output: expected {expected}, got {tuple(output.shape)}, strides {output.stride()},"
            f" {output.dtype}"
        )


def _check_where(grad, bits):
    if not grad.is_floating_point():
        raise TypeError(f"grad: expected a floating-point dtype, got {grad.dtype}")
    if bits.dtype != torch.uint8:
        raise TypeError(f"bits: expected torch.uint8, got {bits.dtype}")
    if bits.shape != (_bytes(grad),):
        raise ValueError(
            f"bits: expected shape {(_bytes(grad),)}, one bit an element of grad, got"
            f" {tuple(bits.shape)}"
        )


def _bytes(tensor):
    return (tensor.numel() + 7) // 8


def positive_bits_ref(input):
    _check(input)
    flags = input.new_zeros(8 * _bytes(input), dtype=torch.uint8)
    flags[: input.numel()] = ~(input.flatten() <= 0)
    return (flags.view(-1, 8) << torch.arange(8, dtype=torch.uint8, device=input.device)).sum(
        1, dtype=torch.uint8
    )


def relu_bits_ref(input, output):
    _check_relu(input, output)
    bits = positive_bits_ref(input)
    output.copy_(input.relu())
    return bits


def where_bits_ref(grad, bits, scale):
    _check_where(grad, bits)
    flags = (bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    flags = flags.flatten()[: grad.numel()].view(grad.shape).bool()
    scaled = grad.to(torch.promote_types(torch.float32, grad.dtype)) * scale
    return scaled.to(grad.dtype).masked_fill(~flags, 0).contiguous()


def _fake(input):
    _check(input)
    return input.new_empty(_bytes(input), dtype=torch.uint8)


def _relu_fake(input, output):
    _check_relu(input, output)
    return input.new_empty(_bytes(input), dtype=torch.uint8)


def _where_fake(grad, bits, scale):
    _check_where(grad, bits)
    return grad.new_empty(grad.shape)


def positive_bits_cpu(input):
    _check(input)
    return _bits(input) if input.dtype in _native.DTYPES else positive_bits_ref(input)


def relu_bits_cpu(input, output):
    _check_relu(input, output)
    if input.dtype not in _native.DTYPES:
        return relu_bits_ref(input, output)
    bits = _bits(input, output.data_ptr())
    wrote(output)
    return bits


def _bits(input, relu=0):
    bits = torch.empty(_bytes(input), dtype=torch.uint8)
    input = input.contiguous()
    dtype = _native.DTYPES[input.dtype]
    _native.C.positive_bits(
        input.data_ptr(), dtype, input.numel(), bits.data_ptr(), relu, torch.get_num_threads()
    )
    return bits


def where_bits_cpu(grad, bits, scale):
    output = _where_fake(grad, bits, scale)
    if grad.dtype not in _native.DTYPES:
        return where_bits_ref(grad, bits, scale)
    grad, bits = grad.contiguous(), bits.contiguous()
    _native.C.where_bits(
        grad.data_ptr(),
        _native.DTYPES[grad.dtype],
        grad.numel(),
        bits.data_ptr(),
        scale,
        output.data_ptr(),
        torch.get_num_threads(),
    )
    return output


def positive_bits_triton(input):
    from sparse_ft.kernels import positive_bits as kernels

    bits = _fake(input)
    kernels.positive_bits_triton(input, bits)
    return bits


def relu_bits_triton(input, output):
    from sparse_ft.kernels import positive_bits as kernels

    bits = _relu_fake(input, output)
    kernels.positive_bits_triton(input, bits, output)
    wrote(output)
    return bits


def where_bits_triton(grad, bits, scale):
    from sparse_ft.kernels import positive_bits as kernels

    output = _where_fake(grad, bits, scale)
    kernels.where_bits_triton(grad, bits, scale, output)
    return output


define(SCHEMA, fake=_fake)
_positive_bits = implement(
    "positive_bits", reference=positive_bits_ref, cpu=positive_bits_cpu, triton=positive_bits_triton
)
define(RELU_SCHEMA, fake=_relu_fake)
_relu_bits = implement(
    "relu_bits", reference=relu_bits_ref, cpu=relu_bits_cpu, triton=relu_bits_triton
)
define(WHERE_SCHEMA, fake=_where_fake)
_where_bits = implement(
    "where_bits", reference=where_bits_ref, cpu=where_bits_cpu, triton=where_bits_triton
)


def positive_bits(input):
    """`~(input <= 0)` as uint8 [ceil(numel / 8)]: bit i % 8 of byte i // 8 is that of
    `input.flatten()[i]`; past the end 0.

    input: floating point, any shape; the bit of NaN is set, as ReLU lets its gradient through.
    Raises TypeError that names the argument.
    """
    if plain((input,)):
        return _positive_bits(input)
    return torch.ops.sparse_ft.positive_bits(input)


def relu_bits(input, output):
    """`output.copy_(input.relu())` and `positive_bits(input)`, which it returns, in one pass.

    input: floating point, any shape. output: contiguous, shape and dtype of input, perhaps input
    itself. Raises TypeError or ValueError that names the argument.
    """
    if plain((input, output)):
        return _relu_bits(input, output)
    return torch.ops.sparse_ft.relu_bits(input, output)


def where_bits(grad, bits, scale=1.0):
    """`torch.where(flags, grad * scale, 0)`, flags as `positive_bits` packs them: the backward of
    ReLU and of dropout.

    grad: floating point, any shape; multiplied in fp32 (fp64 for fp64) and rounded once. bits:
    uint8 [ceil(numel / 8)]. Returns a contiguous tensor of the shape and dtype of grad; what is
    dropped is 0 even where grad is not finite. Raises ValueError or TypeError that names the
    argument.
    """
    if plain((grad, bits)):
        return _where_bits(grad, bits, scale)
    return torch.ops.sparse_ft.where_bits(grad, bits, scale)
