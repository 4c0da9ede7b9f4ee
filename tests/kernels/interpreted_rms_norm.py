import pytest
import torch
from oracle import DEVICE, bits, within_twice
from sparse_ft.kernels.rms_norm import rms_norm_backward_triton, rms_norm_triton

EPS = 1e-6
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def tensors(shape, dtype):
    grad, input = (
        torch.randn(shape, dtype=torch.float64, device=DEVICE).to(dtype) for _ in range(2)
    )
    return (
        grad,
        input,
        (1 + 0.2 * torch.randn(shape[-1], dtype=torch.float64, device=DEVICE)).to(dtype),
    )


def plain(grad, input, weight, offset):
    """transformers' LlamaRMSNorm, Gemma's with an offset."""
    input = input.detach().clone().requires_grad_()
    wide = input.to(torch.promote_types(torch.float32, input.dtype))
    normed = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).to(input.dtype)
    output = normed if weight is None else (offset + weight) * normed
    return output.detach(), torch.autograd.grad(output, input, grad)[0]


def kernel(grad, input, weight, offset=0.0, dtype=None):
    output = torch.empty(input.shape, dtype=dtype or input.dtype, device=DEVICE)
    wide = torch.promote_types(torch.float32, input.dtype)
    rstd = torch.empty(input.shape[:-1], dtype=wide, device=DEVICE)
    rms_norm_triton(input, weight, EPS, offset, output, rstd)
    grad_input = torch.empty(input.shape, dtype=input.dtype, device=DEVICE)
    rms_norm_backward_triton(grad, input, rstd, weight, offset, grad_input)
    return output, grad_input, rstd


@pytest.mark.parametrize("weighted, offset", [(True, 0.0), (True, 1.0), (False, 0.0)])
@pytest.mark.parametrize("shape", [(7, 130), (2, 5000), (2, 3, 64), (9,)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_as_exact_as_plain(dtype, shape, weighted, offset):
    grad, input, weight = tensors(shape, dtype)
    weight = weight if weighted else None
    exact = plain(
        grad.double(), input.double(), None if weight is None else weight.double(), offset
    )
    *got, rstd = kernel(grad, input, weight, offset)
    for ours, theirs, want in zip(got, plain(grad, input, weight, offset), exact):
        if dtype == torch.float64:  # the truth itself is plain PyTorch's
            torch.testing.assert_close(ours, want, rtol=1e-12, atol=1e-12)
        else:
            within_twice(ours, theirs, want)
    want = (input.double().square().mean(-1) + EPS).rsqrt()
    assert ((rstd - want).abs() <= 3 * torch.finfo(rstd.dtype).eps * want).all()


def test_strides_and_dtypes():
    grad, input, weight = tensors((6, 33), torch.float32)
    want = kernel(grad, input, weight)
    views = [(grad.t().contiguous().t(), input), (grad, torch.cat((input, grad), 1)[:, :33])]
    for g, x in views:
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(kernel(g, x, weight), want))
    half = kernel(grad, input, weight, dtype=torch.bfloat16)[0]
    assert torch.equal(half, want[0].bfloat16())
    spread = weight.repeat_interleave(2)[::2]
    assert torch.equal(kernel(grad, input, spread)[1], want[1])


def test_extreme_rows():
    grad, input, weight = tensors((4, 64), torch.float32)
    input[0], input[1, 5] = 0.0, float("nan")
    output, grad_input, rstd = kernel(grad, input, weight)
    assert not output[0].any() and output[1].isnan().all() and grad_input[1].isnan().all()
    assert output[2:].isfinite().all() and rstd[0].item() == pytest.approx(1e3)
