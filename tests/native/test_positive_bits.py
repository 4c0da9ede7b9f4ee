"""positive_bits and where_bits of the native core.

Exact, for every variant, thread count and number of elements left over.
"""

import core
import pytest
import torch
from oracle import DTYPES, name_of, same_bits


@pytest.mark.parametrize("count", [1, 8, 1000, 16384, 50005])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_exact_for_every_thread_count(variant, dtype, count):
    input, grad = (torch.randn(count, dtype=torch.float64).to(dtype) for _ in range(2))
    grad[grad > 2] = float("nan")
    padded = torch.zeros((count + 7) // 8 * 8, dtype=torch.bool)
    padded[:count] = input > 0
    want = (padded.view(-1, 8).int() << torch.arange(8)).sum(1).to(torch.uint8)
    zero = torch.zeros((), dtype=dtype)
    for threads in (1, 2, 7):
        bits = core.positive_bits(input, threads)
        assert torch.equal(bits, want), threads
        relu = torch.empty_like(input)
        assert torch.equal(core.positive_bits(input, threads, relu), want) and same_bits(
            relu, input.relu()
        )
        assert same_bits(
            core.where_bits(grad, bits, 1.0, threads), torch.where(padded[:count], grad, zero)
        )
        scaled = torch.where(
            padded[:count],
            (grad.to(torch.promote_types(torch.float32, dtype)) * 1.1).to(dtype),
            zero,
        )
        torch.testing.assert_close(
            core.where_bits(grad, bits, 1.1, threads), scaled, rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_relu_of_every_16_bit_number(variant, dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    input = (
        every.view(dtype)
        if dtype.itemsize == 2
        else torch.cat([every.view(torch.float16).to(dtype), -torch.zeros(3).to(dtype)])
    )
    relu = torch.empty_like(input)
    bits = core.positive_bits(input, relu=relu)
    assert same_bits(relu, torch.where(input < 0, torch.zeros_like(input), input))
    assert torch.equal(core.where_bits(torch.ones_like(input), bits).bool(), ~(input <= 0))
