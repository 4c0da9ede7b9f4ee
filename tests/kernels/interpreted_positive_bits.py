import pytest
import torch
from oracle import DEVICE, bits
from sparse_ft.kernels.positive_bits import positive_bits_triton, where_bits_triton

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("count", [1, 8, 9, 1023, 1025, 3000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_bit_is_its_element(dtype, count):
    input, grad = (
        torch.randn(count, dtype=torch.float64, device=DEVICE).to(dtype) for _ in range(2)
    )
    input[0] = float("nan")
    grad[:3] = float("inf")
    packed = torch.empty((count + 7) // 8, dtype=torch.uint8, device=DEVICE)
    positive_bits_triton(input, packed)
    flags = torch.zeros(8 * packed.numel(), dtype=torch.bool, device=DEVICE)
    flags[:count] = ~(input <= 0)
    assert torch.equal(
        packed, (flags.view(-1, 8).int() << torch.arange(8, device=DEVICE)).sum(1).to(torch.uint8)
    )
    again, relu = torch.empty_like(packed), torch.empty_like(input)
    positive_bits_triton(input, again, relu)
    assert (
        torch.equal(again, packed) and relu[0].isnan() and torch.equal(relu[1:], input[1:].relu())
    )
    for scale in (1.0, 1.25):
        output = torch.empty_like(grad)
        where_bits_triton(grad, packed, scale, output)
        scaled = (grad.to(torch.promote_types(torch.float32, dtype)) * scale).to(dtype)
        assert torch.equal(
            bits(output), bits(torch.where(flags[:count], scaled, torch.zeros_like(scaled)))
        )


def test_order_is_that_of_flatten():
    input = torch.randn(7, 5, device=DEVICE).t()
    packed, output = (
        torch.empty(5, dtype=torch.uint8, device=DEVICE),
        torch.empty(5, 7, device=DEVICE),
    )
    positive_bits_triton(input, packed)
    where_bits_triton(input, packed, 1.0, output)
    assert torch.equal(output, input.relu())
