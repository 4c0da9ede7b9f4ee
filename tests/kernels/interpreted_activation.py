import functools

import pytest
import torch
import torch.nn.functional as F
from oracle import DEVICE, assert_as_exact, bits
from sparse_ft.kernels.activation import activation_backward_triton, activation_triton

PLAIN = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": functools.partial(F.gelu, approximate="tanh")}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def tensors(shape, dtype):
    grad, input = (
        torch.randn(shape, dtype=torch.float64, device=DEVICE).to(dtype) for _ in range(2)
    )
    return grad, input * 3


def plain(grad, input, activation):
    input = input.detach().clone().requires_grad_()
    output = PLAIN[activation](input)
    return output.detach(), *torch.autograd.grad(output, input, grad)


def kernel(grad, input, activation):
    output = torch.full(input.shape, float("nan"), dtype=input.dtype, device=input.device)
    grad_input = output.clone()
    activation_triton(input, activation, output)
    activation_backward_triton(grad, input, activation, grad_input)
    return output, grad_input


@pytest.mark.parametrize("shape", [(7, 130), (1, 1), (3, 1500), (2, 3, 5), ()], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", PLAIN)
def test_as_exact_as_plain(activation, dtype, shape):
    given = tensors(shape, dtype)
    exact = plain(*(t.double() for t in given), activation)
    assert_as_exact(kernel(*given, activation), plain(*given, activation), exact)


def test_strides():
    grad, input = tensors((6, 33), torch.float32)
    want = kernel(grad, input, "silu")
    views = (
        (grad, torch.cat((input, grad), 1)[:, :33]),
        (grad.t().contiguous().t(), input.repeat_interleave(2, 1)[:, ::2]),
    )
    for view in views:
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(kernel(*view, "silu"), want))


@pytest.mark.parametrize("activation", PLAIN)
def test_nothing_to_do_and_nan(activation):
    empty = torch.empty(0, 5, device=DEVICE)
    assert all(t.shape == (0, 5) for t in kernel(empty, empty, activation))
    nan = torch.full((3,), float("nan"), device=DEVICE)
    assert all(t.isnan().all() for t in kernel(torch.ones_like(nan), nan, activation))
