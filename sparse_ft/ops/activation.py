"""activation: SiLU or GELU of a tensor, and its gradient from the input alone."""

import torch

from . import _native
from ._activations import ACTIVATIONS, CODES, check, widened
from ._library import define, implement
from ._rows import as_rows, rows

SCHEMA = "activation(Tensor input, str activation) -> Tensor"
BACKWARD_SCHEMA = "activation_backward(Tensor grad_output, Tensor input, str activation) -> Tensor"
KNOWN = ("silu", "gelu", "gelu_tanh")  # for ReLU one bit an element is enough: see positive_bits


def _check(input, activation, **others):
    check(activation, KNOWN, input=input, **others)


def activation_ref(input, activation):
    _check(input, activation)
    (wide,) = widened(input)
    return ACTIVATIONS[activation][0](wide).to(input.dtype).contiguous()


def activation_backward_ref(grad_output, input, activation):
    _check(input, activation, grad_output=grad_output)
    return ACTIVATIONS[activation][1](*widened(grad_output, input)).to(input.dtype).contiguous()


def _fake(input, activation):
    _check(input, activation)
    return input.new_empty(input.shape)


def _backward_fake(grad_output, input, activation):
    _check(input, activation, grad_output=grad_output)
    return input.new_empty(input.shape)


def activation_cpu(input, activation):
    output = _fake(input, activation)
    if input.dtype not in _native.DTYPES:
        return activation_ref(input, activation)
    dtype, (shape, (input,)) = _native.DTYPES[input.dtype], as_rows(input)
    _native.C.activation(
        *rows(input), dtype, *shape, CODES[activation], output.data_ptr(), torch.get_num_threads()
    )
    return output


def activation_backward_cpu(grad_output, input, activation):
    grad_input = _backward_fake(grad_output, input, activation)
    if input.dtype not in _native.DTYPES:
        return activation_backward_ref(grad_output, input, activation)
    dtype, (shape, (grad_output, input)) = _native.DTYPES[input.dtype], as_rows(grad_output, input)
    _native.C.activation_backward(
        *rows(grad_output),
        *rows(input),
        dtype,
        *shape,
        CODES[activation],
        grad_input.data_ptr(),
        torch.get_num_threads(),
    )
    return grad_input


def activation_triton(input, activation):
    from sparse_ft.kernels import activation as kernels

    _check(input, activation)
    return kernels.activation_triton(input, activation)


def activation_backward_triton(grad_output, input, activation):
    from sparse_ft.kernels import activation as kernels

    _check(input, activation, grad_output=grad_output)
    return kernels.activation_backward_triton(grad_output, input, activation)


define(SCHEMA, fake=_fake)
implement("activation", reference=activation_ref, cpu=activation_cpu, triton=activation_triton)
define(BACKWARD_SCHEMA, fake=_backward_fake)
implement(
    "activation_backward",
    reference=activation_backward_ref,
    cpu=activation_backward_cpu,
    triton=activation_backward_triton,
)


def activation(input, activation):
    """`F.silu(input)`, or `F.gelu`, computed in fp32 (fp64 for fp64) and rounded once. Not
    differentiable: see `activation_backward`.

    input: [..., F] of a floating-point dtype. activation: "silu", "gelu" or "gelu_tanh". Returns a
    contiguous tensor of that shape and dtype. Raises ValueError or TypeError that names the
    argument.
    """
    return torch.ops.sparse_ft.activation(input, activation)


def activation_backward(grad_output, input, activation):
    """grad_input of `activation`: `grad_output * act'(input)`.

    grad_output: shape and dtype of input. Raises ValueError or TypeError that names the argument.
    """
    return torch.ops.sparse_ft.activation_backward(grad_output, input, activation)
