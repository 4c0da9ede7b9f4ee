"""batch_norm_ of the native core.

Torch's numbers, the bits of what it wrote, for every variant, thread count and layout.
"""

import core
import pytest
import torch
from oracle import DTYPES, name_of, same_bits


@pytest.mark.parametrize(
    "extents", [(1, 1, 1), (3, 5, 7), (2, 3, 9001), (4001, 5, 1), (2, 700, 1), (0, 3, 4)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_the_same_for_every_thread_count(variant, dtype, extents):
    channels = extents[1]
    for other in (dtype, torch.float32):
        input = torch.randn(extents, dtype=torch.float64).to(dtype)
        mean, variance, weight, bias = (
            torch.rand(channels, dtype=torch.float64).to(other) + 0.1 for _ in range(4)
        )
        for w, b in ((weight, bias), (None, None)):
            wide = torch.promote_types(torch.float32, dtype)
            of_channels = [t if t is None else t.to(wide) for t in (mean, variance, w, b)]
            want = torch.nn.functional.batch_norm(
                input.to(wide), *of_channels, False, 0.0, 1e-5
            ).to(dtype)
            first = None
            for threads in (1, 2, 7):
                plain, relu = input.clone(), input.clone()
                core.batch_norm_(plain, mean, variance, w, b, 1e-5, threads=threads)
                bits = core.batch_norm_(relu, mean, variance, w, b, 1e-5, True, threads)
                first = plain if first is None else first
                assert same_bits(plain, first) and same_bits(relu, plain.relu()), threads
                assert torch.equal(bits, core.positive_bits(plain))
            # Not every variant has FMA.
            rounding = dict(rtol=4 * torch.finfo(dtype).eps, atol=16 * torch.finfo(wide).eps)
            torch.testing.assert_close(first, want, **rounding)
