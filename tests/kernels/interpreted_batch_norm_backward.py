import pytest
import torch
from oracle import DEVICE, bits
from sparse_ft.kernels.batch_norm_backward import batch_norm_backward_triton

EPS = 1e-5


@pytest.mark.parametrize("extents", [(1, 1, 1), (3, 5, 7), (2, 3, 1025), (300, 5, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_two_products_and_one_rounding(dtype, extents):
    wide = torch.promote_types(torch.float32, dtype)
    grad = torch.randn(extents, dtype=torch.float64, device=DEVICE).to(dtype)
    variance, weight = (
        torch.rand(extents[1], dtype=torch.float64, device=DEVICE) + 0.1 for _ in range(2)
    )
    variance, weight = variance.to(wide), weight.to(dtype)
    rstd = 1 / (variance + EPS).sqrt()
    for w in (weight, None):
        want = grad.to(wide) * rstd[:, None]
        want = (want if w is None else want * w.to(wide)[:, None]).to(dtype)
        output = torch.empty_like(grad)
        batch_norm_backward_triton(grad, w, variance, EPS, None, output)
        assert torch.equal(bits(output), bits(want))
        positive = torch.randint(256, ((grad.numel() + 7) // 8,), dtype=torch.uint8, device=DEVICE)
        flags = (positive[:, None] >> torch.arange(8, device=DEVICE)).flatten()[
            : grad.numel()
        ].view(extents) & 1
        batch_norm_backward_triton(grad, w, variance, EPS, positive, output)
        assert torch.equal(output, want.masked_fill(flags == 0, 0))
