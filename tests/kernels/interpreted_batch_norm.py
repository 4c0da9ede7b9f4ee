import pytest
import torch
from oracle import DEVICE, bits
from sparse_ft.kernels.batch_norm import batch_norm_triton_

EPS = 1e-5


@pytest.mark.parametrize("extents", [(1, 1, 1), (3, 5, 7), (2, 3, 1025), (300, 5, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_product_a_sum_and_one_rounding(dtype, extents):
    wide = torch.promote_types(torch.float32, dtype)
    input = torch.randn(extents, dtype=torch.float64, device=DEVICE).to(dtype)
    input.view(-1)[-1] = float("nan")
    mean, weight, bias = (torch.randn(extents[1], dtype=wide, device=DEVICE) for _ in range(3))
    variance = torch.rand(extents[1], dtype=wide, device=DEVICE)
    scale = (variance + EPS).rsqrt() * weight
    shift = bias - mean * scale
    want = (input.to(wide) * scale[:, None] + shift[:, None]).to(dtype)
    output = input.clone()
    packed = torch.empty((input.numel() + 7) // 8, dtype=torch.uint8, device=DEVICE)
    batch_norm_triton_(output, mean, variance, weight, bias, EPS, False, packed[:0])
    assert (
        torch.equal(bits(output.nan_to_num()), bits(want.nan_to_num()))
        and output.view(-1)[-1].isnan()
    )
    batch_norm_triton_(input, mean, variance, weight, bias, EPS, True, packed)
    assert (
        torch.equal(bits(input.nan_to_num()), bits(want.relu().nan_to_num()))
        and input.view(-1)[-1].isnan()
    )
    flags = torch.zeros(8 * packed.numel(), dtype=torch.bool, device=DEVICE)
    flags[: want.numel()] = ~(want.flatten() <= 0)
    assert torch.equal(
        packed, (flags.view(-1, 8).int() << torch.arange(8, device=DEVICE)).sum(1).to(torch.uint8)
    )
