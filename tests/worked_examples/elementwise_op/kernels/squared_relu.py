"""squared_relu: the square of ReLU."""

import torch
import triton
import triton.language as tl

from .layout import cdiv, check_tensors, on_device, round_to

BLOCK = 1024


@triton.jit
def _squared_relu_kernel(input_ptr, output_ptr, count, BLOCK: tl.constexpr):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(input_ptr + offs, mask=offs < count, other=0.0)
    x = x.to(tl.float64 if x.dtype == tl.float64 else tl.float32)
    relu = tl.where(x < 0, 0.0, x).to(x.dtype)  # NaN passes
    squared = round_to(relu * relu, output_ptr.dtype.element_ty)
    tl.store(output_ptr + offs, squared, mask=offs < count)


def squared_relu_triton(input: torch.Tensor, output: torch.Tensor) -> None:
    """Fills output, contiguous, in the shape and dtype of input."""
    check_tensors(input=input, output=output)
    count = output.numel()
    if not count:
        return
    with on_device(input):
        _squared_relu_kernel[(cdiv(count, BLOCK),)](
            input.contiguous(), output, count, BLOCK=BLOCK, num_warps=4
        )
