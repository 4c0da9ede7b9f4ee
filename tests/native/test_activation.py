"""activation of the native core.

Every variant as exact as plain PyTorch, and the same bits wherever an element lies.
"""

import core
import oracle
import pytest
import torch
from oracle import ACTIVATIONS, DTYPES, name_of, same_bits

NAMES = pytest.mark.parametrize("activation", core.ACTIVATIONS)
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)


def plain(grad, input, activation):
    input = input.clone().requires_grad_()
    output = ACTIVATIONS[activation](input)
    return output.detach(), *torch.autograd.grad(output, input, grad)


def native(grad, input, activation, **keywords):
    return core.activation(input, activation, **keywords), core.activation_backward(
        grad, input, activation, **keywords
    )


@pytest.mark.parametrize("shape", [(9, 1001), (1, 20000), (2000, 3)], ids=str)
@DTYPE
@NAMES
def test_as_exact_as_plain(variant, activation, dtype, shape):
    grad, input = (torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(2))
    input = input * 3
    want = plain(grad.double(), input.double(), activation)
    results, theirs = native(grad, input, activation), plain(grad, input, activation)
    oracle.assert_elementwise(results, want, theirs, slack=0)


@DTYPE
@NAMES
def test_same_bits_for_every_thread_count_and_place(variant, activation, dtype):
    # Enough work for three threads.
    grad, input = (torch.randn(50, 3001, dtype=torch.float64).to(dtype) for _ in range(2))
    want = native(grad, input, activation, threads=1)
    for threads in (2, 3, 7):
        assert all(
            same_bits(a, b) for a, b in zip(native(grad, input, activation, threads=threads), want)
        ), threads
    # Other pieces, other tails; rows that lie apart.
    for start, length in ((1, 7), (3, 1000), (5, 33)):
        part = slice(start, start + length)
        got = native(grad[:, part], input[:, part], activation)
        assert all(same_bits(a, b[:, part].contiguous()) for a, b in zip(got, want)), (
            start,
            length,
        )


@DTYPE
@NAMES
def test_is_a_gated_product_with_ones(variant, activation, dtype):
    grad, input = (torch.randn(3, 700, dtype=torch.float64).to(dtype) for _ in range(2))
    one = torch.ones_like(input)
    assert same_bits(core.activation(input, activation), core.gated_product(input, one, activation))
    both = core.gated_product_backward(grad, input, one, activation)
    assert same_bits(core.activation_backward(grad, input, activation), both[0])
