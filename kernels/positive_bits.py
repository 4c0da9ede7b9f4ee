"""positive_bits: one bit an element, where ReLU passes it, and the ReLU.

where_bits: a gradient let through by its bit.
"""

import torch
import triton
import triton.language as tl

from .layout import check_tensors, on_device, round_to

BYTES = 128  # a program: 1024 elements, 8 a thread
OPTIONS = dict(num_warps=4, enable_fp_fusion=True)


@triton.jit
def _positive_bits_kernel(
    input_ptr,  # [count]
    bits_ptr,  # [ceil(count / 8)]
    relu_ptr,  # [count] or None
    count,
    BYTES: tl.constexpr,
):
    byte = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    bit = tl.arange(0, 8)
    offs = byte[:, None] * 8 + bit[None, :]
    x = tl.load(input_ptr + offs, mask=offs < count, other=0.0)
    wide = x.to(tl.float64 if x.dtype == tl.float64 else tl.float32)
    flags = ((wide > 0) | (wide != wide)).to(tl.int32)
    packed = tl.sum(flags << bit[None, :], axis=1)
    tl.store(bits_ptr + byte, packed.to(tl.uint8), mask=byte * 8 < count)
    if relu_ptr is not None:
        tl.store(relu_ptr + offs, tl.where(wide < 0, 0.0, x).to(x.dtype), mask=offs < count)


@triton.jit
def _where_bits_kernel(
    grad_ptr,  # [count]
    bits_ptr,  # [ceil(count / 8)]
    output_ptr,  # [count]
    count,
    scale: tl.constexpr,
    BYTES: tl.constexpr,
):
    byte = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    bit = tl.arange(0, 8)
    offs = byte[:, None] * 8 + bit[None, :]
    packed = tl.load(bits_ptr + byte, mask=byte * 8 < count, other=0).to(tl.int32)
    grad = tl.load(grad_ptr + offs, mask=offs < count, other=0.0)
    WIDE: tl.constexpr = tl.float64 if grad.dtype == tl.float64 else tl.float32
    scaled = round_to(grad.to(WIDE) * tl.full((), scale, WIDE), grad.dtype)
    kept = ((packed[:, None] >> bit[None, :]) & 1) != 0
    tl.store(output_ptr + offs, tl.where(kept, scaled, 0.0).to(grad.dtype), mask=offs < count)


def positive_bits_triton(
    input: torch.Tensor, bits: torch.Tensor, relu: torch.Tensor | None = None
) -> None:
    """Fills bits, uint8 [ceil(numel / 8)], as `positive_bits` packs them.

    Bit i % 8 of byte i // 8 is that of ~(input.flatten()[i] <= 0).
    relu: contiguous, gets input.relu(); may be input itself, as a program reads what it writes
    before it writes.
    """
    check_tensors(input=input, **({} if relu is None else {"relu": relu}))
    if not bits.numel():
        return
    with on_device(input):
        _positive_bits_kernel[(triton.cdiv(bits.numel(), BYTES),)](
            input.contiguous(), bits, relu, input.numel(), BYTES=BYTES, **OPTIONS
        )


def relu_bits_triton(input: torch.Tensor, output: torch.Tensor, bits: torch.Tensor) -> None:
    """Fills output with input.relu(), and bits as positive_bits_triton does."""
    positive_bits_triton(input, bits, output)


def where_bits_triton(
    grad: torch.Tensor, bits: torch.Tensor, scale: float, output: torch.Tensor
) -> None:
    """Fills output, contiguous: grad * scale where the bit is set, 0 elsewhere."""
    check_tensors(grad=grad, output=output, bits=bits)
    if not bits.numel():
        return
    with on_device(grad):
        _where_bits_kernel[(triton.cdiv(bits.numel(), BYTES),)](
            grad.contiguous(),
            bits.contiguous(),
            output,
            grad.numel(),
            scale=scale,
            BYTES=BYTES,
            **OPTIONS,
        )
