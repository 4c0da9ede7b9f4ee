"""batch_norm_: a product and a sum for each channel, in place, and the ReLU of it with one bit an
element.
"""

import torch
import triton
import triton.language as tl

from .layout import check_tensors, offsets_of, on_device, round_to

BYTES = 128  # a program: 1024 elements, 8 a thread
OPTIONS = dict(num_warps=4, enable_fp_fusion=False)


@triton.jit
def _batch_norm_kernel(
    input_ptr,  # [outer, channels, inner]
    scale_ptr,  # [channels]
    shift_ptr,  # [channels]
    bits_ptr,  # [ceil(count / 8)] or None: no ReLU
    count,
    channels,
    inner,
    OFFSET: tl.constexpr,
    BYTES: tl.constexpr,
):
    WIDE: tl.constexpr = scale_ptr.dtype.element_ty
    byte = tl.program_id(0).to(OFFSET) * BYTES + tl.arange(0, BYTES)
    bit = tl.arange(0, 8)
    offs = byte[:, None] * 8 + bit[None, :]
    channel = offs // inner % channels
    x = tl.load(input_ptr + offs, mask=offs < count, other=0.0).to(WIDE)
    x = x * tl.load(scale_ptr + channel, mask=offs < count, other=0.0)
    x += tl.load(shift_ptr + channel, mask=offs < count, other=0.0)
    x = round_to(x, input_ptr.dtype.element_ty)
    if bits_ptr is not None:
        wide = x.to(WIDE)
        flags = ((wide > 0) | (wide != wide)).to(tl.int32)
        packed = tl.sum(flags << bit[None, :], axis=1)
        tl.store(bits_ptr + byte, packed.to(tl.uint8), mask=byte * 8 < count)
        x = tl.where(wide < 0, 0.0, x).to(x.dtype)
    tl.store(input_ptr + offs, x, mask=offs < count)


def extents(tensor: torch.Tensor) -> tuple[int, int, int]:
    """(outer, channels, inner) of the memory of [N, C, ...] that is contiguous, or channels
    last.
    """
    channels = tensor.size(1)
    if tensor.is_contiguous():
        return tensor.size(0), channels, tensor.shape[2:].numel()
    return tensor.numel() // channels, channels, 1


def batch_norm_triton_(
    input: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    relu: bool,
    bits: torch.Tensor,
) -> None:
    """`input * scale + shift` of each channel, in place: BatchNorm by its running statistics.

    With relu its ReLU, and bits of where it is positive or NaN.

    input: [N, C, ...], contiguous or channels last. running_mean to bias: [C]. bits: uint8
    [ceil(numel / 8)] with relu; bit i % 8 of byte i // 8 is that of element i.
    """
    wide = torch.promote_types(torch.float32, input.dtype)
    check_tensors(input=input, running_mean=running_mean, running_var=running_var)
    scale = (running_var.to(wide) + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    outer, channels, inner = extents(input)
    count = outer * channels * inner
    if count:
        with on_device(input):
            _batch_norm_kernel[(triton.cdiv(count, 8 * BYTES),)](
                input,
                scale.to(wide),
                shift.to(wide),
                bits if relu else None,
                count,
                channels,
                inner,
                OFFSET=offsets_of(count + 8 * BYTES),
                BYTES=BYTES,
                **OPTIONS,
            )
