"""gated_product of the native core.

Every variant as exact as plain PyTorch, and the same bits wherever an element lies.
"""

import core
import oracle
import pytest
import torch
from oracle import ACTIVATIONS, DTYPES, name_of, same_bits

NAMES = pytest.mark.parametrize("activation", core.ACTIVATIONS)


def operands(shape, dtype):
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(3)]


def plain(grad, gate, up, activation):
    gate, up = gate.clone().requires_grad_(), up.clone().requires_grad_()
    output = ACTIVATIONS[activation](gate) * up
    return output.detach(), *torch.autograd.grad(output, (gate, up), grad)


def native(grad, gate, up, activation, **keywords):
    output = core.gated_product(gate, up, activation, **keywords)
    return output, *core.gated_product_backward(grad, gate, up, activation, **keywords)


@pytest.mark.parametrize("shape", [(9, 1001), (1, 20000), (2000, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@NAMES
def test_as_exact_as_plain(variant, activation, dtype, shape):
    grad, gate, up = operands(shape, dtype)
    gate = gate * 3
    want = plain(*(t.double() for t in (grad, gate, up)), activation)
    results, theirs = native(grad, gate, up, activation), plain(grad, gate, up, activation)
    oracle.assert_elementwise(results, want, theirs, slack=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@NAMES
def test_same_bits_for_every_thread_count_and_place(variant, activation, dtype):
    tensors = operands((50, 1003), dtype)
    want = native(*tensors, activation, threads=1)
    for threads in (2, 3, 7):
        assert all(
            same_bits(a, b) for a, b in zip(native(*tensors, activation, threads=threads), want)
        ), threads
    for start, length in ((1, 7), (3, 1000), (5, 33)):  # other pieces, other tails
        part = [t[:, start : start + length] for t in tensors]
        got = native(*part, activation)
        assert all(
            same_bits(a, b[:, start : start + length].contiguous()) for a, b in zip(got, want)
        ), (start, length)


@NAMES
def test_both_halves_of_one_projection(variant, activation):
    both = torch.randn(37, 2 * 61).bfloat16()
    grad = torch.randn(37, 61).bfloat16()
    gate, up = both.chunk(2, -1)
    want = native(grad, gate.contiguous(), up.contiguous(), activation)
    assert all(same_bits(a, b) for a, b in zip(native(grad, gate, up, activation), want))


@pytest.mark.parametrize("activation", core.ACTIVATIONS[:3])
def test_every_float16_gate(variant, activation):
    """All that fp16 can hold, in fp32: no gap in the range reduction, no wrong tail."""
    gate = (
        torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    )
    gate = gate[gate.isfinite()][None]
    one = torch.ones_like(gate)
    for got, exact in zip(
        native(one, gate, one, activation),
        plain(*(t.double() for t in (one, gate, one)), activation),
    ):
        error = (got.double() - exact).abs() / exact.abs().clamp(min=0.1)
        assert error.max() < 8 * torch.finfo(torch.float32).eps
