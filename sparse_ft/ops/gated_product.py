"""gated_product: act(gate) * up, the middle of a gated feed-forward layer, and its gradients."""

from torch import Tensor

from ._activations import ACTIVATIONS, check, widened
from ._registry import Compiled, op


def _shapes(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    check(activation, gate=gate, up=up)
    return gate.new_empty(gate.shape)


def _backward_shapes(
    grad_output: Tensor, gate: Tensor, up: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    check(activation, gate=gate, up=up, grad_output=grad_output)
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


@op(
    "gated_product(Tensor gate, Tensor up, str activation) -> Tensor output",
    shapes=_shapes,
    cpu=Compiled(rows=("gate", "up")),
    triton="gated_product.gated_product_triton",
)
def gated_product(gate: Tensor, up: Tensor, activation: str = "silu") -> Tensor:
    """`act(gate) * up`, computed in fp32 (fp64 for fp64) and rounded once. Not differentiable: see
    `gated_product_backward`.

    gate, up: [..., F] of one floating-point dtype; the two halves of one [..., 2F] projection are
    read where they lie.
    activation: "silu", "gelu", "gelu_tanh" or "relu". Returns a contiguous tensor of that shape and
    dtype. Raises ValueError or TypeError that names the argument.
    """
    act, _ = ACTIVATIONS[activation]
    return (act(widened(gate)) * widened(up)).to(gate.dtype).contiguous()


@op(
    "gated_product_backward(Tensor grad_output, Tensor gate, Tensor up, str activation) -> (Tensor"
    " grad_gate, Tensor grad_up)",
    shapes=_backward_shapes,
    cpu=Compiled(rows=("grad_output", "gate", "up")),
    triton="gated_product.gated_product_backward_triton",
)
def gated_product_backward(
    grad_output: Tensor, gate: Tensor, up: Tensor, activation: str = "silu"
) -> tuple[Tensor, Tensor]:
    """(grad_gate, grad_up) of `gated_product`: `grad_output * up * act'(gate)` and `grad_output *
    act(gate)`.

    grad_output: shape and dtype of gate and up. Raises ValueError or TypeError that names the
    argument.
    """
    act, act_backward = ACTIVATIONS[activation]
    grad, wide_gate = widened(grad_output), widened(gate)
    grad_gate = act_backward(grad * widened(up), wide_gate)
    grad_up = grad * act(wide_gate)
    return grad_gate.to(gate.dtype).contiguous(), grad_up.to(gate.dtype).contiguous()
