"""Lean norms beside torch's.

The same result and dtype for every pair of dtypes, also where torch chooses eps.
"""

import copy

import pytest
import torch

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("input_dtype", DTYPES)
@pytest.mark.parametrize("weight_dtype", [*DTYPES, None])
def test_rms_norm_is_torchs(input_dtype, weight_dtype):
    torch.manual_seed(0)
    plain = torch.nn.RMSNorm(16, elementwise_affine=weight_dtype is not None).to(weight_dtype)
    lean = copy.deepcopy(plain)
    sft.lean(lean)
    x = (torch.randn(4, 16) * 1e-3).to(input_dtype).requires_grad_()  # so small that eps counts
    want, got = plain(x), lean(x)
    assert got.dtype == want.dtype
    assert torch.allclose(got, want, rtol=4 * torch.finfo(input_dtype).eps)
