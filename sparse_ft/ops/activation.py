"""activation: SiLU or GELU of a tensor, and its gradient from the input alone."""

from torch import Tensor

from ._activations import ACTIVATIONS, check, widened
from ._registry import Compiled, op

KNOWN = ("silu", "gelu", "gelu_tanh")  # for ReLU one bit an element is enough: see positive_bits


def _shapes(input: Tensor, activation: str) -> Tensor:
    check(activation, KNOWN, input=input)
    return input.new_empty(input.shape)


def _backward_shapes(grad_output: Tensor, input: Tensor, activation: str) -> Tensor:
    check(activation, KNOWN, input=input, grad_output=grad_output)
    return input.new_empty(input.shape)


@op(
    "activation(Tensor input, str activation) -> Tensor output",
    shapes=_shapes,
    cpu=Compiled(rows=("input",)),
    triton="activation.activation_triton",
)
def activation(input: Tensor, activation: str) -> Tensor:
    """`F.silu(input)`, or `F.gelu`, computed in fp32 (fp64 for fp64) and rounded once. Not
    differentiable: see `activation_backward`.

    input: [..., F] of a floating-point dtype. activation: "silu", "gelu" or "gelu_tanh". Returns a
    contiguous tensor of that shape and dtype. Raises ValueError or TypeError that names the
    argument.
    """
    act, _ = ACTIVATIONS[activation]
    return act(widened(input)).to(input.dtype).contiguous()


@op(
    "activation_backward(Tensor grad_output, Tensor input, str activation) -> Tensor grad_input",
    shapes=_backward_shapes,
    cpu=Compiled(rows=("grad_output", "input")),
    triton="activation.activation_backward_triton",
)
def activation_backward(grad_output: Tensor, input: Tensor, activation: str) -> Tensor:
    """grad_input of `activation`: `grad_output * act'(input)`.

    grad_output: shape and dtype of input. Raises ValueError or TypeError that names the argument.
    """
    _, act_backward = ACTIVATIONS[activation]
    grad_input = act_backward(widened(grad_output), widened(input))
    return grad_input.to(input.dtype).contiguous()
