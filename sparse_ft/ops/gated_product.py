"""gated_product: act(gate) * up, the middle of a gated feed-forward layer, and its gradients."""

import torch

from . import _native
from ._activations import ACTIVATIONS, CODES, check, widened
from ._library import define, implement
from ._rows import as_rows, rows

SCHEMA = "gated_product(Tensor gate, Tensor up, str activation) -> Tensor"
BACKWARD_SCHEMA = (
    "gated_product_backward(Tensor grad_output, Tensor gate, Tensor up, str activation) -> (Tensor"
    " grad_gate, Tensor grad_up)"
)


def _check(gate, up, activation, **others):
    check(activation, gate=gate, up=up, **others)


def gated_product_ref(gate, up, activation):
    _check(gate, up, activation)
    wide_gate, wide_up = widened(gate, up)
    return (ACTIVATIONS[activation][0](wide_gate) * wide_up).to(gate.dtype).contiguous()


def gated_product_backward_ref(grad_output, gate, up, activation):
    _check(gate, up, activation, grad_output=grad_output)
    act, act_backward = ACTIVATIONS[activation]
    grad, wide_gate, wide_up = widened(grad_output, gate, up)
    grads = act_backward(grad * wide_up, wide_gate), grad * act(wide_gate)
    return tuple(g.to(gate.dtype).contiguous() for g in grads)


def _fake(gate, up, activation):
    _check(gate, up, activation)
    return gate.new_empty(gate.shape)


def _backward_fake(grad_output, gate, up, activation):
    _check(gate, up, activation, grad_output=grad_output)
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


def gated_product_cpu(gate, up, activation):
    output = _fake(gate, up, activation)
    if gate.dtype not in _native.DTYPES:
        return gated_product_ref(gate, up, activation)
    shape, (gate, up) = as_rows(gate, up)
    _native.C.gated_product(
        *rows(gate),
        *rows(up),
        _native.DTYPES[gate.dtype],
        *shape,
        CODES[activation],
        output.data_ptr(),
        torch.get_num_threads(),
    )
    return output


def gated_product_backward_cpu(grad_output, gate, up, activation):
    grad_gate, grad_up = _backward_fake(grad_output, gate, up, activation)
    if gate.dtype not in _native.DTYPES:
        return gated_product_backward_ref(grad_output, gate, up, activation)
    shape, (grad_output, gate, up) = as_rows(grad_output, gate, up)
    _native.C.gated_product_backward(
        *rows(grad_output),
        *rows(gate),
        *rows(up),
        _native.DTYPES[gate.dtype],
        *shape,
        CODES[activation],
        grad_gate.data_ptr(),
        grad_up.data_ptr(),
        torch.get_num_threads(),
    )
    return grad_gate, grad_up


def gated_product_triton(gate, up, activation):
    from sparse_ft.kernels import gated_product as kernels

    _check(gate, up, activation)
    return kernels.gated_product_triton(gate, up, activation)


def gated_product_backward_triton(grad_output, gate, up, activation):
    from sparse_ft.kernels import gated_product as kernels

    _check(gate, up, activation, grad_output=grad_output)
    return kernels.gated_product_backward_triton(grad_output, gate, up, activation)


define(SCHEMA, fake=_fake)
implement(
    "gated_product", reference=gated_product_ref, cpu=gated_product_cpu, triton=gated_product_triton
)
define(BACKWARD_SCHEMA, fake=_backward_fake)
implement(
    "gated_product_backward",
    reference=gated_product_backward_ref,
    cpu=gated_product_backward_cpu,
    triton=gated_product_backward_triton,
)


def gated_product(gate, up, activation="silu"):
    """`act(gate) * up`, computed in fp32 (fp64 for fp64) and rounded once. Not differentiable: see
    `gated_product_backward`.

    gate, up: [..., F] of one floating-point dtype; the two halves of one [..., 2F] projection are
    read where they lie.
    activation: "silu", "gelu", "gelu_tanh" or "relu". Returns a contiguous tensor of that shape and
    dtype. Raises ValueError or TypeError that names the argument.
    """
    return torch.ops.sparse_ft.gated_product(gate, up, activation)


def gated_product_backward(grad_output, gate, up, activation="silu"):
    """(grad_gate, grad_up) of `gated_product`: `grad_output * up * act'(gate)` and `grad_output *
    act(gate)`.

    grad_output: shape and dtype of gate and up. Raises ValueError or TypeError that names the
    argument.
    """
    return torch.ops.sparse_ft.gated_product_backward(grad_output, gate, up, activation)
