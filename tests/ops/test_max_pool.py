"""max_pool against torch's own: values and places are exact."""

import oracle
import pytest
import torch
import torch.nn.functional as F
from oracle import DTYPES, name_of

from sparse_ft import ops
from sparse_ft.ops._registry import reference

WINDOWS = {  # kernel_size, stride, padding, dilation, ceil_mode
    "one": ((1, 1), (1, 1), (0, 0), (1, 1), False),
    "usual": ((3, 3), (2, 2), (1, 1), (1, 1), False),
    "ceil_mode": ((3, 2), (2, 3), (1, 1), (1, 1), True),
    "dilated": ((2, 3), (3, 2), (1, 1), (3, 2), True),
    "most": ((16, 16), (4, 4), (8, 8), (1, 1), False),
}


@pytest.fixture(params=["op", "reference"])
def max_pool(request):
    return ops.max_pool if request.param == "op" else reference("max_pool")


def places(numbers, kernel_size, stride, padding, dilation, width):
    """Flat positions in the plane."""
    row, column = (torch.arange(n, device=numbers.device) for n in numbers.shape[-2:])
    row = (row * stride[0] - padding[0])[:, None] + numbers.long() // kernel_size[1] * dilation[0]
    column = column * stride[1] - padding[1] + numbers.long() % kernel_size[1] * dilation[1]
    return row * width + column


@pytest.mark.parametrize("shape", [(1, 7, 6), (2, 3, 17, 33), (1, 2, 8, 601)], ids=str)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_exact(max_pool, dtype, window, shape, device):
    input = torch.randint(-9, 9, shape, device=device).to(dtype)  # ties
    input.view(-1)[::7], input.view(-1)[1::13] = -float("inf"), float("nan")
    *sizes, ceil_mode = WINDOWS[window]
    want, flat = F.max_pool2d(input, *sizes, ceil_mode=ceil_mode, return_indices=True)
    for x in (input, input.transpose(-1, -2).contiguous().transpose(-1, -2)):
        output, numbers = max_pool(x, *sizes, ceil_mode)
        assert output.is_contiguous() and numbers.dtype == torch.uint8
        assert oracle.same_bits(output.nan_to_num(), want.nan_to_num()) and torch.equal(
            output.isnan(), want.isnan()
        )
        assert torch.equal(places(numbers, *sizes, shape[-1]), flat)


def test_nothing_to_do(max_pool, device):
    output, numbers = max_pool(torch.empty(0, 3, 7, 7, device=device), *WINDOWS["usual"])
    assert output.shape == numbers.shape == (0, 3, 4, 4)


def test_opcheck(device):
    for shape in ((3, 7, 5), (2, 3, 7, 5)):
        torch.library.opcheck(
            torch.ops.sparse_ft.max_pool.default,
            (torch.randn(shape, device=device), *WINDOWS["ceil_mode"]),
        )


def test_errors_name_the_argument(max_pool):
    x, one, two, three = torch.zeros(1, 4, 4), (1, 1), (2, 2), (3, 3)
    for args, error, message in [
        ((x.int(), two, one, one, one), TypeError, "input: .*int32"),
        ((x[0], two, one, one, one), ValueError, r"input: expected \[C, H, W\]"),
        (
            (x, (17, 17), one, one, one),
            ValueError,
            r"kernel_size: expected at most 256 elements, got \(17, 17\)",
        ),
        (
            (x, two, (0, 1), one, one),
            ValueError,
            r"stride: expected two positive numbers, got [\[(]0, 1",
        ),
        ((x, two, one, (-1, 0), one), ValueError, "padding: expected two non-negative numbers"),
        (
            (x, three, one, two, one),
            ValueError,
            r"padding: expected at most half of kernel_size \(3, 3\)",
        ),
        ((x, three, one, one, (9, 1)), ValueError, "input: expected planes that hold a window"),
    ]:
        with pytest.raises(error, match=message):
            max_pool(*args, False)
