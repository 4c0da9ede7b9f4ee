"""squared_relu against fp64, the op and its reference."""

import pytest
import torch

from sparse_ft import ops
from sparse_ft.ops._registry import reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("call", [ops.squared_relu, reference("squared_relu")])
def test_as_exact_as_one_rounding(call, dtype):
    x = torch.randn(5, 7, dtype=torch.float64).to(dtype).t()
    got = call(x)
    assert got.is_contiguous() and got.dtype == dtype
    wide = x.double() if dtype == torch.float64 else x.float()
    assert torch.equal(got, wide.clamp(min=0).square().to(dtype))
    assert call(torch.full((2,), float("nan"))).isnan().all()


def test_bad_input_is_named():
    with pytest.raises(TypeError, match="input: .*torch.int64"):
        ops.squared_relu(torch.arange(3))


def test_opcheck():
    torch.library.opcheck(torch.ops.sparse_ft.squared_relu.default, (torch.randn(3, 4),))
