"""batch_norm_ against fp64, allowed twice the error of F.batch_norm.

Its ReLU and bits are exactly those of what it wrote.
"""

import oracle
import pytest
import torch
import torch.nn.functional as F
from oracle import DTYPES, name_of

from sparse_ft import ops
from sparse_ft.ops._registry import reference

EPS = 1e-5
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
SHAPES = pytest.mark.parametrize(
    "shape", [(1, 1), (7, 5), (3, 5, 9), (2, 3, 7, 9), (1, 5, 40, 41), (2, 3, 2, 3, 5)], ids=str
)
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


@pytest.fixture(params=["op", "reference"])
def batch_norm_(request):
    return ops.batch_norm_ if request.param == "op" else reference("batch_norm_")


def channels(count, dtype, device):
    """running_mean, running_var, weight, bias; weights of either sign."""
    mean, var, weight, bias = torch.randn(4, count, dtype=torch.float64).to(device, dtype)
    return mean, var.abs() + 0.05, weight * 2, bias


def in_every_format(input):
    """The same numbers in the ways in memory that the op takes."""
    yield input.contiguous()
    if input.dim() in FORMATS:
        yield input.contiguous(memory_format=FORMATS[input.dim()])


def ordered(tensor):
    """The elements as they lie in memory."""
    return torch.as_strided(tensor, (tensor.numel(),), (1,))


@SHAPES
@DTYPE
def test_as_good_as_torch(batch_norm_, dtype, shape, device):
    wide = torch.promote_types(torch.float32, dtype)
    input = (3 * torch.randn(shape, dtype=torch.float64)).to(device, dtype)
    for parameters in (
        channels(shape[1], dtype, device),
        (*channels(shape[1], wide, device)[:2], None, None),
    ):
        exact = F.batch_norm(
            *(t if t is None else t.cpu().double() for t in (input, *parameters)), False, 0.0, EPS
        )
        plain = F.batch_norm(input.to(parameters[0].dtype), *parameters, False, 0.0, EPS).to(dtype)
        slack = torch.finfo(wide).eps * 2 * exact.abs().max().item()
        for x in in_every_format(input):
            normed, relu, version = x.clone(), x.clone(), x._version
            assert batch_norm_(normed, *parameters, EPS, False).shape == (0,)
            oracle.assert_as_good_as_plain(normed, exact, plain, slack)
            bits = batch_norm_(relu, *parameters, EPS, True)
            assert (
                oracle.same_bits(relu, normed.relu())
                and relu.stride() == x.stride()
                and relu._version > version
            )
            assert bits.dtype == torch.uint8 and torch.equal(
                bits, reference("positive_bits")(ordered(normed))
            )


def test_special_values(batch_norm_, device):
    """NaN stays NaN, and a gradient passes there, as in torch's relu.

    Zero and what is below does not.
    """
    input = torch.tensor(
        [[float("nan")], [float("inf")], [-float("inf")], [0.0], [-0.0], [1.0], [-1.0]],
        device=device,
    )
    none, one = torch.zeros(1, device=device), torch.ones(1, device=device)
    bits = batch_norm_(input, none, one, None, None, 0.0, True)
    assert bits.tolist() == [0b0100011]
    assert input[0].isnan() and input[1:].flatten().tolist() == [
        float("inf"),
        0.0,
        0.0,
        0.0,
        1.0,
        0.0,
    ]


def test_nothing_to_do(batch_norm_, device):
    for shape in ((0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)):
        empty, of_channels = torch.empty(shape, device=device), torch.ones(shape[1], device=device)
        assert batch_norm_(empty, of_channels, of_channels, None, None, EPS, True).shape == (0,)


@pytest.mark.parametrize("relu", [True, False])
def test_opcheck(relu, device):
    for input in in_every_format(torch.randn(2, 3, 4, 5, device=device)):
        parameters = channels(3, torch.float32, device)
        torch.library.opcheck(
            torch.ops.sparse_ft.batch_norm_.default, (input, *parameters, EPS, relu)
        )


def test_errors_name_the_argument_and_leave_everything(batch_norm_):
    x, three, two = torch.ones(2, 3, 4, 5), torch.ones(3), torch.ones(2)
    for args, error, message in [
        (
            (x[0, 0, 0], three, three, None, None),
            ValueError,
            r"input: expected \[N, C, ...\], got shape \(5,\)",
        ),
        ((x.long(), three, three, None, None), TypeError, "input: .*int64"),
        (
            (x.transpose(2, 3), three, three, None, None),
            ValueError,
            r"input: expected contiguous or channels last",
        ),
        (
            (x, two, three, None, None),
            ValueError,
            r"running_mean: expected shape \(3,\), got \(2,\)",
        ),
        ((x, three, three.int(), None, None), TypeError, "running_var: .*int32"),
        ((x, three, three, two, None), ValueError, r"weight: expected shape \(3,\)"),
        ((x, three, three, None, two), ValueError, r"bias: expected shape \(3,\)"),
    ]:
        with pytest.raises(error, match=message):
            batch_norm_(*args, EPS, True)
    assert (x == 1).all()
