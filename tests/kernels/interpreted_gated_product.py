import functools

import pytest
import torch
import torch.nn.functional as F
from oracle import DEVICE, assert_as_exact, bits
from sparse_ft.kernels.gated_product import gated_product_backward_triton, gated_product_triton

PLAIN = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def tensors(shape, dtype):
    grad, gate, up = (
        torch.randn(shape, dtype=torch.float64, device=DEVICE).to(dtype) for _ in range(3)
    )
    return grad, gate * 3, up


def plain(grad, gate, up, activation):
    gate, up = gate.detach().clone().requires_grad_(), up.detach().clone().requires_grad_()
    output = PLAIN[activation](gate) * up
    return output.detach(), *torch.autograd.grad(output, (gate, up), grad)


def kernel(grad, gate, up, activation):
    results = [
        torch.full(gate.shape, float("nan"), dtype=gate.dtype, device=gate.device) for _ in range(3)
    ]
    gated_product_triton(gate, up, activation, results[0])
    gated_product_backward_triton(grad, gate, up, activation, *results[1:])
    return results


@pytest.mark.parametrize("shape", [(7, 130), (1, 1), (3, 1500), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", PLAIN)
def test_as_exact_as_plain(activation, dtype, shape):
    given = tensors(shape, dtype)
    exact = plain(*(t.double() for t in given), activation)
    assert_as_exact(kernel(*given, activation), plain(*given, activation), exact)


def test_strides():
    grad, gate, up = tensors((6, 33), torch.float32)
    want = kernel(grad, gate, up, "silu")
    both = torch.cat((gate, up), 1)
    views = (
        (grad, *both.chunk(2, 1)),
        (grad.t().contiguous().t(), gate.repeat_interleave(2, 1)[:, ::2], up),
    )
    for view in views:
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(kernel(*view, "silu"), want))


@pytest.mark.parametrize("activation", PLAIN)
def test_extreme_gates(activation):
    gate = torch.tensor(
        [s * x for x in (80.0, 90.0, 1e4, 1e30, float("inf"), 0.0) for s in (1, -1)], device=DEVICE
    )
    one = torch.ones_like(gate)
    for got, want in zip(
        kernel(one, gate, one, activation),
        plain(*(t.double() for t in (one, gate, one)), activation),
    ):
        known = ~want.isnan()
        torch.testing.assert_close(got.double()[known], want[known], rtol=1e-4, atol=1e-35)
    nan = torch.full((3,), float("nan"), device=DEVICE)
    assert kernel(nan, nan, torch.ones_like(nan), activation)[0].isnan().all()
