"""batch_norm_backward of the native core.

Two products and one rounding, for every variant, thread count and layout.
"""

import math

import core
import pytest
import torch
from oracle import DTYPES, name_of, same_bits


@pytest.mark.parametrize(
    "extents", [(1, 1, 1), (3, 5, 7), (2, 3, 9001), (4001, 5, 1), (2, 700, 1), (0, 3, 4)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_exact_for_every_thread_count(variant, dtype, extents):
    channels = extents[1]
    wide = torch.promote_types(torch.float32, dtype)
    for other in (dtype, torch.float32):
        grad = torch.randn(extents, dtype=torch.float64).to(dtype)
        variance, weight = (
            torch.rand(channels, dtype=torch.float64).to(other),
            torch.randn(channels).to(other),
        )
        rstd = torch.tensor(
            [1 / math.sqrt(v + 1e-5) for v in variance.tolist()], dtype=torch.float64
        ).to(wide)
        for w in (weight, None):
            want = grad.to(wide) * rstd[:, None]
            want = (want if w is None else want * w.to(wide)[:, None]).to(dtype)
            positive = core.positive_bits(torch.randn(extents))
            flags = (positive[:, None] >> torch.arange(8)).flatten()[: grad.numel()].view(
                extents
            ) & 1
            passed = want.masked_fill(flags == 0, 0)
            for threads in (1, 2, 7):
                operands = grad, w, variance, 1e-5, threads
                assert same_bits(core.batch_norm_backward(*operands), want), (w, threads)
                assert torch.equal(core.batch_norm_backward(*operands, positive), passed), (
                    w,
                    threads,
                )
