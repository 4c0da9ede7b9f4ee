"""squared_relu: the square of ReLU (So et al., Primer, 2021)."""

import torch
from torch import Tensor

from . import _native
from ._registry import op


def _shapes(input: Tensor) -> Tensor:
    if not input.is_floating_point():
        raise TypeError(f"input: expected a floating-point dtype, got {input.dtype}")
    return input.new_empty(input.shape)


def _cpu(input: Tensor, output: Tensor) -> None:
    _native.C.squared_relu(input.contiguous(), output, torch.get_num_threads())


@op(
    "squared_relu(Tensor input) -> Tensor output",
    shapes=_shapes,
    cpu=_cpu,
    triton="squared_relu.squared_relu_triton",
)
def squared_relu(input: Tensor) -> Tensor:
    """`F.relu(input).square()`, computed in fp32 (fp64 for fp64) and rounded once.

    input: floating point, any shape. Returns a contiguous tensor of that shape and dtype. Raises
    TypeError that names the argument.
    """
    wide = input.to(torch.promote_types(torch.float32, input.dtype))
    return wide.relu().square().to(input.dtype).contiguous()
