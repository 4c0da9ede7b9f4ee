"""positive_bits: which elements are positive, one bit each, and where_bits: a gradient let through where the bit is set."""

import torch

from . import _native
from ._library import define, implement

SCHEMA = "positive_bits(Tensor input) -> Tensor"
WHERE_SCHEMA = "where_bits(Tensor grad, Tensor bits, float scale) -> Tensor"


def _check(input):
    if not input.is_floating_point():
        raise TypeError(f"input: expected a floating-point dtype, got {input.dtype}")


def _check_where(grad, bits):
    if not grad.is_floating_point():
        raise TypeError(f"grad: expected a floating-point dtype, got {grad.dtype}")
    if bits.dtype != torch.uint8:
        raise TypeError(f"bits: expected torch.uint8, got {bits.dtype}")
    if bits.shape != (_bytes(grad),):
        raise ValueError(f"bits: expected shape {(_bytes(grad),)}, one bit an element of grad, got {tuple(bits.shape)}")


def _bytes(tensor):
    return (tensor.numel() + 7) // 8


def positive_bits_ref(input):
    _check(input)
    flags = input.new_zeros(8 * _bytes(input), dtype=torch.uint8)
    flags[: input.numel()] = input.flatten() > 0
    return (flags.view(-1, 8) << torch.arange(8, dtype=torch.uint8, device=input.device)).sum(1, dtype=torch.uint8)


def where_bits_ref(grad, bits, scale):
    _check_where(grad, bits)
    flags = (bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    flags = flags.flatten()[: grad.numel()].view(grad.shape).bool()
    scaled = grad.to(torch.promote_types(torch.float32, grad.dtype)) * scale
    return scaled.to(grad.dtype).masked_fill(~flags, 0).contiguous()


def _fake(input):
    _check(input)
    return input.new_empty(_bytes(input), dtype=torch.uint8)


def _where_fake(grad, bits, scale):
    _check_where(grad, bits)
    return grad.new_empty(grad.shape)


def positive_bits_cpu(input):
    bits = _fake(input)
    if input.dtype not in _native.DTYPES:
        return positive_bits_ref(input)
    input = input.contiguous()
    _native.C.positive_bits(
        input.data_ptr(), _native.DTYPES[input.dtype], input.numel(), bits.data_ptr(), torch.get_num_threads()
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


def where_bits_triton(grad, bits, scale):
    from sparse_ft.kernels import positive_bits as kernels

    output = _where_fake(grad, bits, scale)
    kernels.where_bits_triton(grad, bits, scale, output)
    return output


define(SCHEMA, fake=_fake)
implement("positive_bits", reference=positive_bits_ref, cpu=positive_bits_cpu, triton=positive_bits_triton)
define(WHERE_SCHEMA, fake=_where_fake)
implement("where_bits", reference=where_bits_ref, cpu=where_bits_cpu, triton=where_bits_triton)


def positive_bits(input):
    """`input > 0` as uint8 [ceil(numel / 8)]: bit i % 8 of byte i // 8 is that of `input.flatten()[i]`; past the end 0.

    input: floating point, any shape. NaN is not positive. Raises TypeError that names the argument.
    """
    return torch.ops.sparse_ft.positive_bits(input)


def where_bits(grad, bits, scale=1.0):
    """`torch.where(flags, grad * scale, 0)`, flags as `positive_bits` packs them: the backward of ReLU and of dropout.

    grad: floating point, any shape; multiplied in fp32 (fp64 for fp64) and rounded once. bits: uint8 [ceil(numel / 8)].
    Returns a contiguous tensor of the shape and dtype of grad; what is dropped is 0 even where grad is not finite.
    Raises ValueError or TypeError that names the argument.
    """
    return torch.ops.sparse_ft.where_bits(grad, bits, scale)
