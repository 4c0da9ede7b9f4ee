"""batch_norm_backward: a gradient times two numbers of its channel, perhaps where its bit is set
only.
"""

import torch
import triton
import triton.language as tl

from .batch_norm import extents
from .layout import check_tensors, offsets_of, on_device, round_to

BLOCK = 1024  # elements a program, 8 a thread
OPTIONS = dict(num_warps=4, enable_fp_fusion=False)


@triton.jit
def _batch_norm_backward_kernel(
    grad_output_ptr,  # [outer, channels, inner]
    rstd_ptr,  # [channels]
    weight_ptr,  # [channels] or None
    positive_ptr,  # [ceil(count / 8)] or None: all pass
    grad_input_ptr,  # [outer, channels, inner]
    count,
    channels,
    inner,
    OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    WIDE: tl.constexpr = rstd_ptr.dtype.element_ty
    offs = tl.program_id(0).to(OFFSET) * BLOCK + tl.arange(0, BLOCK)
    channel = offs // inner % channels
    grad = tl.load(grad_output_ptr + offs, mask=offs < count, other=0.0).to(WIDE)
    if positive_ptr is not None:
        packed = tl.load(positive_ptr + offs // 8, mask=offs < count, other=0).to(tl.int32)
        grad = tl.where(((packed >> (offs % 8).to(tl.int32)) & 1) != 0, grad, 0.0)
    grad *= tl.load(rstd_ptr + channel, mask=offs < count, other=0.0)
    if weight_ptr is not None:
        grad *= tl.load(weight_ptr + channel, mask=offs < count, other=0.0).to(WIDE)
    tl.store(
        grad_input_ptr + offs, round_to(grad, grad_input_ptr.dtype.element_ty), mask=offs < count
    )


def batch_norm_backward_triton(
    grad_output: torch.Tensor,
    weight: torch.Tensor | None,
    running_var: torch.Tensor,
    eps: float,
    positive: torch.Tensor | None,
    grad_input: torch.Tensor,
) -> None:
    """Fills grad_input: `grad_output / sqrt(running_var + eps) * weight` of each channel.

    grad_output, grad_input: [N, C, ...], the latter contiguous or channels last. weight,
    running_var: [C]. positive: uint8 [ceil(numel / 8)] or None; elements whose bit is not set, in
    the order of grad_input's memory, count as 0.
    """
    optional = {
        name: t for name, t in (("weight", weight), ("positive", positive)) if t is not None
    }
    check_tensors(
        grad_output=grad_output, running_var=running_var, grad_input=grad_input, **optional
    )
    if grad_output.stride() != grad_input.stride():
        grad_output = torch.empty_like(grad_input).copy_(grad_output)
    wide = torch.promote_types(torch.float32, grad_output.dtype)
    rstd = (1 / (running_var.to(wide) + eps).sqrt()).contiguous()
    weight = None if weight is None else weight.contiguous()
    positive = None if positive is None else positive.contiguous()
    outer, channels, inner = extents(grad_input)
    count = outer * channels * inner
    if count:
        with on_device(grad_output):
            _batch_norm_backward_kernel[(triton.cdiv(count, BLOCK),)](
                grad_output,
                rstd,
                weight,
                positive,
                grad_input,
                count,
                channels,
                inner,
                OFFSET=offsets_of(count + BLOCK),
                BLOCK=BLOCK,
                **OPTIONS,
            )
