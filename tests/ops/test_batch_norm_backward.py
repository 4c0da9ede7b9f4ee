"""batch_norm_backward against fp64, allowed twice the error of autograd through F.batch_norm and
relu.
"""

import oracle
import pytest
import torch
import torch.nn.functional as F
from oracle import DTYPES, name_of

from sparse_ft import ops
from sparse_ft.ops._registry import reference

EPS = 1e-5
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


@pytest.fixture(params=["op", "reference"])
def backward(request):
    return ops.batch_norm_backward if request.param == "op" else reference("batch_norm_backward")


def through(relu, input, grad_output, parameters):
    """grad_input of torch's own."""
    input = input.detach().requires_grad_()
    output = F.batch_norm(input, *parameters, False, 0.0, EPS)
    return torch.autograd.grad(output.relu() if relu else output, input, grad_output)[0]


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    "shape", [(1, 1), (7, 5), (3, 5, 9), (2, 3, 7, 9), (1, 5, 40, 41), (2, 3, 2, 3, 5)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_as_good_as_torch(backward, dtype, shape, relu, device):
    input, grad = (torch.randn(shape, dtype=torch.float64).to(device, dtype) for _ in range(2))
    mean, var, weight, bias = torch.randn(4, shape[1], dtype=torch.float64).to(device, dtype)
    for parameters in ((mean, var.abs() + 0.1, weight, bias), (mean, var.abs() + 0.1, None, None)):
        for form in (torch.contiguous_format, FORMATS.get(len(shape), torch.contiguous_format)):
            x, g, normed = (t.clone().contiguous(memory_format=form) for t in (input, grad, input))
            bits = ops.batch_norm_(normed, *parameters, EPS, True) if relu else None
            got = backward(g, parameters[2], parameters[1], EPS, bits)
            assert got.dtype == dtype and got.is_contiguous(memory_format=form)
            # which side of zero the input came out on is the forward's rounding, not this op's
            wide = [t if t is None else t.cpu().double() for t in parameters]
            through_relu = (
                torch.where(normed == 0, 0, g).cpu().double() if relu else g.cpu().double()
            )
            exact = through(False, x.cpu().double(), through_relu, wide)
            plain = through(relu, x, g, parameters)
            oracle.assert_as_good_as_plain(
                got, exact, plain, 2 * torch.finfo(dtype).eps * exact.abs().max().item()
            )


def test_other_layouts_are_copied(backward, device):
    grad, var = (
        torch.randn(2, 4, 5, 3, device=device).permute(0, 3, 2, 1),
        torch.rand(3, device=device) + 0.1,
    )
    positive = torch.randint(256, (15,), dtype=torch.uint8, device=device)
    got = backward(grad, None, var, EPS, positive)
    assert got.is_contiguous() and torch.equal(
        got, backward(grad.contiguous(), None, var, EPS, positive)
    )
    strided = torch.stack((positive, positive), 1)[:, 0]
    assert torch.equal(got, backward(grad, None, var, EPS, strided))


def test_what_is_dropped_is_zero_even_where_it_is_not_finite(backward, device):
    grad = torch.tensor([[float("nan"), float("inf"), 1.0, float("nan")]], device=device)
    got = backward(
        grad,
        None,
        torch.ones(4, device=device),
        0.0,
        torch.tensor([0b1100], dtype=torch.uint8, device=device),
    )
    assert got[0, :3].tolist() == [0.0, 0.0, 1.0] and got[0, 3].isnan()


def test_opcheck(device):
    grad, of_channels = torch.randn(2, 3, 4, 5, device=device), torch.rand(3, device=device) + 0.1
    bits = torch.zeros(15, dtype=torch.uint8, device=device)
    for positive in (None, bits):
        for form in (torch.contiguous_format, torch.channels_last):
            args = grad.contiguous(memory_format=form), of_channels, of_channels, EPS, positive
            torch.library.opcheck(torch.ops.sparse_ft.batch_norm_backward.default, args)


def test_errors_name_the_argument(backward):
    grad, three = torch.ones(2, 3, 4), torch.ones(3)
    for args, error, message in [
        ((grad[0, 0], three, three), ValueError, r"grad_output: expected \[N, C, ...\]"),
        ((grad.int(), three, three), TypeError, "grad_output: .*int32"),
        ((grad, three[:2], three), ValueError, r"weight: expected shape \(3,\), got \(2,\)"),
        ((grad, None, three.long()), TypeError, "running_var: .*int64"),
    ]:
        with pytest.raises(error, match=message):
            backward(*args, EPS)
    with pytest.raises(TypeError, match="positive: .*float32"):
        backward(grad, None, three, EPS, torch.zeros(3))
    with pytest.raises(ValueError, match=r"positive: expected shape \(3,\).*got \(2,\)"):
        backward(grad, None, three, EPS, torch.zeros(2, dtype=torch.uint8))
