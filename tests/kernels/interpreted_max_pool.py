import pytest
import torch
from oracle import DEVICE
from sparse_ft.kernels.max_pool import max_pool_triton

WINDOWS = {  # kernel_size, stride, padding, dilation
    "usual": ((3, 3), (2, 2), (1, 1), (1, 1)),
    "dilated": ((2, 3), (3, 2), (1, 1), (3, 2)),
}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_torchs_maxima_and_places(dtype, window):
    kernel, stride, padding, dilation = WINDOWS[window]
    input = torch.randint(-9, 9, (3, 17, 23), device=DEVICE).to(dtype)  # ties
    input[0, :6, :6], input[1, 4, 4] = -float("inf"), float("nan")
    want, flat = torch.nn.functional.max_pool2d(
        input, kernel, stride, padding, dilation, return_indices=True
    )
    output, numbers = (
        torch.empty_like(want),
        torch.full(want.shape, 255, dtype=torch.uint8, device=DEVICE),
    )
    max_pool_triton(input, kernel, stride, padding, dilation, False, output, numbers)
    assert torch.equal(output.nan_to_num(), want.nan_to_num()) and torch.equal(
        output.isnan(), want.isnan()
    )
    row, column = (torch.arange(n, device=DEVICE) for n in want.shape[-2:])
    row = (row * stride[0] - padding[0])[:, None] + numbers.long() // kernel[1] * dilation[0]
    column = column * stride[1] - padding[1] + numbers.long() % kernel[1] * dilation[1]
    assert torch.equal(row * 23 + column, flat)
