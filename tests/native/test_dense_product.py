"""dense_product of the native core.

Every variant as exact as torch's product, the same bits for any number of threads.
"""

import core
import pytest
import torch
import torch.nn.functional as F
from oracle import same_bits

# tokens, inner, columns: one of each, less and more than panels, chunks and parts of the output
SHAPES = [
    (1, 1, 1),
    (3, 5, 7),
    (12, 16, 32),
    (13, 17, 33),
    (7, 3, 100),
    (31, 255, 1),
    (100, 300, 257),
    (64, 513, 190),
    (2400, 20, 40),
    (5, 40, 2400),
]


def apart(rows, columns, gap, generator):
    """A matrix whose rows have NaN between them."""
    wide = torch.full((rows, columns + gap), float("nan"))
    wide[:, :columns] = torch.randn(rows, columns, generator=generator)
    return wide[:, :columns]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transposed", [True, False], ids=["by rows", "by columns"])
def test_as_exact_as_torch(variant, transposed, shape):
    tokens, inner, columns = shape
    generator = torch.Generator().manual_seed(inner)
    input = apart(tokens, inner, 3, generator)
    stored = (columns, inner) if transposed else (inner, columns)
    weight = apart(*stored, 5, generator)
    bias = torch.randn(columns, generator=generator)
    as_linear = weight if transposed else weight.T
    for added in (None, bias):
        exact = F.linear(
            input.double(), as_linear.double(), None if added is None else added.double()
        )
        theirs = (F.linear(input, as_linear, added) - exact).abs().max()
        got = core.dense_product(input, as_linear, added)
        # Of few products either may be exact by luck: one rounding of the largest is allowed on
        # top.
        one_rounding = exact.abs().max() * torch.finfo(torch.float32).eps
        assert (got - exact).abs().max() <= 2 * theirs + one_rounding
        for threads in (1, 3, 5):
            again = core.dense_product(input, as_linear, added, threads)
            assert same_bits(got, again), threads


@pytest.mark.parametrize("transposed", [True, False], ids=["by rows", "by columns"])
def test_without_inner_features_the_bias_is_left(variant, transposed):
    weight = torch.empty((4, 0) if transposed else (0, 4))
    bias = torch.arange(4.0)
    weight = weight if transposed else weight.T
    got = core.dense_product(torch.empty(3, 0), weight, bias)
    assert torch.equal(got, bias.expand(3, 4))
    assert torch.equal(core.dense_product(torch.empty(3, 0), weight), torch.zeros(3, 4))
