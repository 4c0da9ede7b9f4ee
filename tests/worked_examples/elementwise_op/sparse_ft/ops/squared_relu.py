"""squared_relu: the square of ReLU (So et al., Primer, 2021)."""

from torch import Tensor

from ._common import accumulator, check_floating
from ._registry import Compiled, op


def _shapes(input: Tensor) -> Tensor:
    check_floating("input", input)
    return input.new_empty(input.shape)


@op(
    "squared_relu(Tensor input) -> Tensor output",
    shapes=_shapes,
    cpu=Compiled(),
    triton="squared_relu.squared_relu_triton",
)
def squared_relu(input: Tensor) -> Tensor:
    """`F.relu(input).square()`, computed in fp32 (fp64 for fp64) and rounded once.

    input: floating point, any shape. Returns a contiguous tensor of that shape and dtype. Raises
    TypeError that names the argument.
    """
    wide = input.to(accumulator(input.dtype))
    return wide.relu().square().to(input.dtype).contiguous()
