"""rms_norm and its gradient against fp64, allowed twice the error of transformers' own LlamaRMSNorm
code and its autograd.
"""

import oracle
import pytest
import torch
from oracle import DTYPES, name_of

from sparse_ft import ops
from sparse_ft.ops._registry import reference

EPS = 1e-6
IMPLEMENTATIONS = {
    "op": (ops.rms_norm, ops.rms_norm_backward),
    "reference": (reference("rms_norm"), reference("rms_norm_backward")),
}
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)


@pytest.fixture(params=IMPLEMENTATIONS)
def norm(request):
    """(input, weight, grad_output, offset, dtype) -> output, rstd, grad_input."""
    forward, backward = IMPLEMENTATIONS[request.param]

    def both(input, weight, grad, offset=0.0, dtype=None, eps=EPS):
        output, rstd = forward(input, weight, eps, offset, dtype=dtype)
        return output, rstd, backward(grad, input, rstd, weight, offset)

    return both


def plain(input, weight, grad, offset=0.0):
    """LlamaRMSNorm (Gemma's where there is an offset).

    The mean square in fp32, the weight in the dtype of the input.
    """
    input = input.detach().clone().requires_grad_()
    wide = input.to(torch.promote_types(torch.float32, input.dtype))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    factor = 1.0 if weight is None else offset + weight
    output = factor * normed.to(input.dtype)
    return output.detach(), torch.autograd.grad(output, input, grad.to(output.dtype))[0]


def tensors(shape, dtype, device, weight_dtype=None):
    input, grad = (torch.randn(shape, dtype=torch.float64).to(device, dtype) for _ in range(2))
    weight = (1 + 0.2 * torch.randn(shape[-1], dtype=torch.float64)).to(
        device, weight_dtype or dtype
    )
    return input, weight, grad


def check(norm, input, weight, grad, offset=0.0):
    given = [t if t is None else t.detach().cpu() for t in (input, weight, grad)]
    want = plain(*(t if t is None else t.double() for t in given), offset)
    allowed = plain(*given, offset)
    output, rstd, grad_input = norm(input, weight, grad, offset)
    exact_rstd = (given[0].double().square().mean(-1) + EPS).rsqrt()
    assert (rstd.cpu() - exact_rstd).abs().amax() <= 2 * torch.finfo(
        rstd.dtype
    ).eps * exact_rstd.amax()
    for got, exact, theirs in zip((output, grad_input), want, allowed):
        slack = 8 * torch.finfo(torch.float64).eps * exact.abs().amax().item()
        oracle.assert_as_good_as_plain(got, exact, theirs, slack)
        error, bound = ((t.cpu().double() - exact).abs().mean().item() for t in (got, theirs))
        assert got.is_contiguous() and error <= 2 * bound + slack


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("columns", [1024, 700])
@DTYPE
def test_as_exact_as_plain(norm, dtype, columns, offset, device):
    check(norm, *tensors((33, columns), dtype, device), offset)


@DTYPE
def test_without_weight(norm, dtype, device):
    input, _, grad = tensors((9, 130), dtype, device)
    check(norm, input, None, grad)
    assert torch.equal(norm(input, None, grad)[0], norm(input, None, grad, offset=3.0)[0])


@pytest.mark.parametrize("shape", [(7,), (5, 3), (2, 3, 65), (1, 6000)], ids=str)
def test_shapes(norm, shape, device):
    check(norm, *tensors(shape, torch.float32, device))


def test_one_column_is_its_sign(norm, device):
    input, weight, grad = tensors((5, 1), torch.float64, device)
    output, rstd, grad_input = norm(input, weight, grad, eps=0.0)
    torch.testing.assert_close(output, input.sign() * weight)
    assert grad_input.abs().max() < 1e-12


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0,)], ids=str)
def test_nothing_to_do(norm, shape, device):
    output, rstd, grad_input = norm(*tensors(shape, torch.float32, device))
    assert output.shape == grad_input.shape == shape and rstd.shape == shape[:-1]


@pytest.mark.parametrize(
    "to", [None, *DTYPES], ids=lambda d: "default" if d is None else name_of(d)
)
@pytest.mark.parametrize("weight_dtype", DTYPES, ids=name_of)
@DTYPE
def test_every_mix_of_dtypes(norm, dtype, weight_dtype, to, device):
    input, weight, grad = tensors((4, 600), dtype, device, weight_dtype)
    mixed = torch.result_type(input, weight)
    wide = torch.promote_types(torch.float32, mixed)
    output, rstd, grad_input = norm(input, weight, grad.to(to or mixed), dtype=to)
    assert (output.dtype, rstd.dtype, grad_input.dtype) == (to or mixed, wide, dtype)
    want = norm(input.to(wide), weight.to(wide), grad.to(to or mixed).to(wide))
    assert oracle.same_bits(output, want[0].to(output.dtype)) and oracle.same_bits(rstd, want[1])
    assert oracle.same_bits(grad_input, want[2].to(dtype))


def test_strides(norm, device):
    input, weight, grad = tensors((4, 6, 130), torch.float32, device)
    want = norm(input, weight, grad)
    wide = torch.randn(4, 6, 300, device=device)
    views = [
        wide[..., 20:150],
        torch.empty(130, 6, 4, device=device).permute(2, 1, 0),
        wide[..., :260:2],
    ]
    for view in views:
        for x, g in (
            (view.copy_(input), grad),
            (input, view.clone(memory_format=torch.preserve_format).copy_(grad)),
        ):
            torch.testing.assert_close(norm(x, weight, g), want)
    spread = torch.empty(260, device=device)[::2].copy_(weight)
    torch.testing.assert_close(norm(input, spread, grad), want)


def test_extreme_rows(norm, device):
    input, weight, grad = tensors((6, 64), torch.float32, device)
    input[0], input[1, 5], input[2, 7], input[3] = 0.0, float("nan"), float("inf"), 1e-25
    input[4] *= 1e15
    output, rstd, grad_input = norm(input, weight, grad)
    assert not output[0].any() and torch.allclose(rstd[0].cpu(), torch.tensor(1e3))
    assert output[1].isnan().all() and grad_input[1].isnan().all()
    assert rstd[2] == 0 and output[2].isnan().sum() == 1 and not output[2].nansum().any()
    for row in (3, 4, 5):
        check(norm, input[row : row + 1], weight, grad[row : row + 1])


@pytest.mark.parametrize("form", ["contiguous", "permuted", "sliced"])
@pytest.mark.parametrize("weighted", [True, False])
def test_opcheck(form, weighted, device):
    input, grad = (oracle.matrices((7, 5), torch.float32, device)[form] for _ in range(2))
    weight = torch.randn(5, device=device).bfloat16() if weighted else None
    torch.library.opcheck(
        torch.ops.sparse_ft.rms_norm.default, (input, weight, EPS, 1.0), {"dtype": torch.bfloat16}
    )
    arguments = grad.bfloat16(), input, ops.rms_norm(input, weight)[1], weight, 1.0
    torch.library.opcheck(torch.ops.sparse_ft.rms_norm_backward.default, arguments)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"input": torch.zeros(())}, ValueError, r"input: .*\(\)"),
        ({"input": torch.zeros(2, 3, dtype=torch.int32)}, TypeError, "input: .*int32"),
        ({"weight": torch.zeros(2)}, ValueError, r"weight: .*\(3,\).*\(2,\)"),
        ({"weight": torch.zeros(3, dtype=torch.int64)}, TypeError, "weight: .*int64"),
        ({"dtype": torch.int32}, TypeError, "dtype: .*int32"),
        ({"grad": torch.zeros(3, 2)}, ValueError, r"grad_output: .*\(3, 2\)"),
        ({"grad": torch.zeros(2, 3, dtype=torch.int32)}, TypeError, "grad_output: .*int32"),
    ],
)
def test_errors_name_the_argument_and_its_value(norm, change, error, message):
    call = {
        "input": torch.zeros(2, 3),
        "weight": torch.zeros(3),
        "grad": torch.zeros(2, 3),
    } | change
    with pytest.raises(error, match=message):
        norm(**call)


@pytest.mark.parametrize(
    "rstd, error, message",
    [
        (torch.ones(3), ValueError, r"rstd: .*\(2,\).*\(3,\)"),
        (torch.ones(2).half(), TypeError, "rstd: .*float32.*float16"),
    ],
)
@pytest.mark.parametrize("backward", [ops.rms_norm_backward, reference("rms_norm_backward")])
def test_errors_of_rstd(backward, rstd, error, message):
    with pytest.raises(error, match=message):
        backward(torch.zeros(2, 3), torch.zeros(2, 3), rstd, None, 0.0)
