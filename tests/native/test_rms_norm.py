"""rms_norm of the native core.

Exact to rounding for every variant, and the same bits for all variants and thread counts.
"""

import itertools

import core
import pytest
import torch
from oracle import DTYPES, name_of, same_bits

EPS = 1e-6


def operands(shape, dtype):
    grad, input = (torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(2))
    return grad, input, (1 + 0.2 * torch.randn(shape[1], dtype=torch.float64)).to(dtype)


def exact(grad, input, weight, offset):
    """In fp64: output, rstd and grad_input, by autograd."""
    input = input.double().requires_grad_()
    rstd = (input.square().mean(1) + EPS).rsqrt()
    output = input * rstd[:, None] * (offset + weight.double())
    return output.detach(), rstd.detach(), torch.autograd.grad(output, input, grad.double())[0]


def native(grad, input, weight, offset=0.0, **keywords):
    output, rstd = core.rms_norm(input, weight, EPS, offset, **keywords)
    return output, rstd, core.rms_norm_backward(grad, input, rstd, weight, offset, **keywords)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(5, 4), (3, 31), (40, 512), (7, 513), (2, 5000)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_exact_to_rounding(variant, dtype, shape, offset):
    tensors = operands(shape, dtype)
    wide = torch.finfo(torch.promote_types(torch.float32, dtype)).eps
    for got, want in zip(native(*tensors, offset), exact(*tensors, offset)):
        eps = torch.finfo(got.dtype).eps
        assert (
            (got.double() - want).abs()
            <= 0.51 * eps * want.abs() + 6 * wide * want.abs().amax().clamp(min=1)
        ).all()


def test_same_bits_for_every_thread_count_and_variant():
    for dtype, shape in itertools.product(DTYPES, ((70, 700), (3, 9001))):
        tensors = operands(shape, dtype)
        want = native(*tensors, threads=1)
        chosen = core.C.build_info()["cpu_variant"]
        for name, threads in itertools.product(core.variants(), (1, 2, 3, 7)):
            core.C.set_cpu_variant(name)
            assert all(same_bits(a, b) for a, b in zip(native(*tensors, threads=threads), want)), (
                dtype,
                name,
                threads,
            )
        core.C.set_cpu_variant(chosen)


def test_strided_rows(variant):
    grad, input, weight = operands((9, 300), torch.bfloat16)
    spread = torch.full((9, 700), float("nan"), dtype=torch.bfloat16)
    spread[:, 11:311] = input
    want = native(grad, input, weight)
    assert all(same_bits(a, b) for a, b in zip(native(grad, spread[:, 11:311], weight), want))
    spread[:, 11:311] = grad
    assert all(same_bits(a, b) for a, b in zip(native(spread[:, 11:311], input, weight), want))


def test_long_rows_lose_nothing(variant):
    """2^20 equal squares: a plain fp32 sum would be off by far more than the last bit."""
    input = torch.full((1, 2**20), 1.1)
    _, rstd = core.rms_norm(input, None, 0.0)
    assert abs(rstd.item() * 1.1 - 1) < 1e-7
