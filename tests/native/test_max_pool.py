"""max_pool of the native core.

Torch's maxima and places, for every variant, thread count and window.
"""

import core
import pytest
import torch
from oracle import DTYPES, name_of, same_bits
from torch.nn.functional import max_pool2d

WINDOWS = {  # kernel_size, stride, padding, dilation
    "one": ((1, 1), (1, 1), (0, 0), (1, 1)),
    "usual": ((3, 3), (2, 2), (1, 1), (1, 1)),
    "narrow": ((1, 5), (2, 1), (0, 2), (1, 2)),
    "wide": ((16, 16), (3, 5), (8, 7), (1, 1)),
    "dilated": ((2, 3), (3, 2), (1, 1), (3, 2)),
}


@pytest.mark.parametrize("shape", [(1, 7, 6), (3, 30, 33), (2, 9, 1201), (0, 7, 7)], ids=str)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_torchs_for_every_thread_count(variant, dtype, window, shape):
    kernel, stride, padding, dilation = WINDOWS[window]
    input = torch.randint(-9, 9, shape).to(dtype)  # ties
    input.view(-1)[::7], input.view(-1)[1::13] = -float("inf"), float("nan")
    want, flat = max_pool2d(input[:, None], kernel, stride, padding, dilation, return_indices=True)
    for threads in (1, 2, 7):
        output, numbers = core.max_pool(input, want.shape[-2:], *WINDOWS[window], threads=threads)
        assert same_bits(output.nan_to_num(), want[:, 0].nan_to_num()) and torch.equal(
            output.isnan(), want[:, 0].isnan()
        )
        first = [
            torch.arange(n) * s - p
            for n, s, p in zip(want.shape[-2:], stride, padding, strict=True)
        ]
        row = first[0][:, None] + numbers.long() // kernel[1] * dilation[0]
        column = first[1] + numbers.long() % kernel[1] * dilation[1]
        assert torch.equal(row * shape[-1] + column, flat[:, 0]), threads
