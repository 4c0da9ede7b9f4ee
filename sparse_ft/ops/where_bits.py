"""where_bits: the numbers whose bit is set, times a factor: the backward of `positive_bits`."""

import torch
from torch import Tensor

from ._common import accumulator, check_floating
from ._registry import Compiled, op
from .positive_bits import check_bits


def _shapes(grad: Tensor, bits: Tensor) -> Tensor:
    check_floating("grad", grad)
    check_bits("bits", bits, grad)
    return grad.new_empty(grad.shape)


@op(
    "where_bits(Tensor grad, Tensor bits, float scale) -> Tensor output",
    shapes=_shapes,
    cpu=Compiled(),
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
    scaled = grad.to(accumulator(grad.dtype)) * scale
    return scaled.to(grad.dtype).masked_fill(~flags, 0).contiguous()
