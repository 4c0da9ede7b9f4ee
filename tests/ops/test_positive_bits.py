"""positive_bits and where_bits against comparisons element by element: exact."""

import oracle
import pytest
import torch
from oracle import DTYPES, name_of

from sparse_ft import ops
from sparse_ft.ops._registry import reference

IMPLEMENTATIONS = {
    "op": (ops.positive_bits, ops.where_bits),
    "reference": (reference("positive_bits"), reference("where_bits")),
}
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
SHAPES = pytest.mark.parametrize(
    "shape", [(), (1,), (7,), (8,), (9,), (3, 5, 7), (511,), (513,), (40001,)], ids=str
)


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return IMPLEMENTATIONS[request.param]


def flags(bits, count):
    """Bool [count], one bit at a time."""
    packed = bits.tolist()
    return torch.tensor([packed[i // 8] >> (i % 8) & 1 for i in range(count)], dtype=torch.bool)


@SHAPES
@DTYPE
def test_each_bit_is_its_element(implementation, dtype, shape, device):
    positive, where = implementation
    input, grad = (torch.randn(shape, dtype=torch.float64).to(device, dtype) for _ in range(2))
    bits = positive(input)
    assert bits.dtype == torch.uint8 and bits.shape == ((input.numel() + 7) // 8,)
    want = (input > 0).cpu()
    assert torch.equal(flags(bits, input.numel()), want.flatten())
    assert not flags(bits, 8 * bits.numel())[input.numel() :].any()
    for scale in (1.0, 1 / 0.9, 0.0):
        scaled = (grad.to(torch.promote_types(torch.float32, dtype)) * scale).to(dtype).cpu()
        assert oracle.same_bits(
            where(grad, bits, scale), torch.where(want, scaled, torch.zeros((), dtype=dtype))
        )


@DTYPE
def test_special_values(implementation, dtype, device):
    positive, where = implementation
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # the smallest subnormal
    inf, nan = float("inf"), float("nan")
    input = torch.tensor([0.0, -0.0, tiny, -tiny, inf, -inf, nan, 1.0], dtype=torch.float64).to(
        device, dtype
    )
    assert positive(input).tolist() == [0b11010100]  # a gradient passes where the input was NaN
    # Every number there is, NaN of both signs among them.
    if dtype in (torch.bfloat16, torch.float16):
        every = (
            torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).to(device)
        )
        assert torch.equal(flags(positive(every), 2**16), ~(every.float() <= 0).cpu())
    grad = torch.tensor([nan, inf, nan, -inf, 1.0, -0.0, nan, -0.0], dtype=torch.float64).to(
        device, dtype
    )
    for scale in (1.0, 2.0):
        got = where(grad, positive(input), scale).cpu()
        assert (
            got[2].isnan()
            and got[4] == scale
            and got[6].isnan()
            and got[7] == 0
            and got[7].signbit()
        )
        assert not got[[0, 1, 3, 5]].any() and not got[[0, 1, 3, 5]].signbit().any()


@SHAPES
@DTYPE
@pytest.mark.parametrize(
    "relu_bits", [ops.relu_bits, reference("relu_bits")], ids=["op", "reference"]
)
def test_relu_in_the_same_pass_is_torchs(relu_bits, dtype, shape, device):
    input = torch.randn(shape, dtype=torch.float64).to(device, dtype)
    input.view(-1)[::7], input.view(-1)[1::7], input.view(-1)[2::9] = (
        -0.0,
        float("nan"),
        -float("inf"),
    )
    output, known = torch.full_like(input, 7), input.clone()
    bits = relu_bits(input, output)
    assert oracle.same_bits(input, known) and torch.equal(bits, reference("positive_bits")(input))
    assert oracle.same_bits(output.nan_to_num(), input.relu().nan_to_num()) and torch.equal(
        output.isnan(), input.isnan()
    )
    version = input._version
    assert torch.equal(relu_bits(input, input), bits) and oracle.same_bits(
        input.nan_to_num(), output.nan_to_num()
    )
    assert input._version > version


def test_relu_goes_to_a_fitting_output():
    for output in (
        torch.zeros(3, 2),
        torch.zeros(2, 3, dtype=torch.float64),
        torch.zeros(3, 2).t(),
    ):
        with pytest.raises(ValueError, match="output: expected contiguous"):
            ops.relu_bits(torch.zeros(2, 3), output)


def test_strides_follow_the_order_of_flatten(implementation, device):
    positive, where = implementation
    for name, input in oracle.matrices((7, 5), torch.float32, device).items():
        bits = positive(input)
        assert torch.equal(bits, positive(input.contiguous())), name
        assert (
            torch.equal(where(input, bits, 1.0), input.relu())
            and where(input, bits, 1.0).is_contiguous()
        )
    spread = torch.stack((bits, bits), 1)[:, 0]
    assert torch.equal(where(input, spread, 1.0), input.relu())


def test_nothing_to_do(implementation, device):
    positive, where = implementation
    empty = torch.empty(0, 3, device=device)
    assert positive(empty).shape == (0,) and where(empty, positive(empty), 1.0).shape == (0, 3)


@pytest.mark.parametrize("form", ["contiguous", "permuted", "sliced"])
def test_opcheck(form, device):
    matrix = oracle.matrices((7, 5), torch.float32, device)[form]
    torch.library.opcheck(torch.ops.sparse_ft.positive_bits.default, (matrix,))
    torch.library.opcheck(
        torch.ops.sparse_ft.relu_bits.default, (matrix, torch.empty(matrix.shape, device=device))
    )
    torch.library.opcheck(
        torch.ops.sparse_ft.where_bits.default, (matrix, ops.positive_bits(matrix), 1.25)
    )


def test_errors_name_the_argument_and_its_value(implementation):
    positive, where = implementation
    with pytest.raises(TypeError, match="input: .*int64"):
        positive(torch.zeros(3, dtype=torch.int64))
    for grad, bits, error, message in [
        (
            torch.zeros(9, dtype=torch.int32),
            torch.zeros(2, dtype=torch.uint8),
            TypeError,
            "grad: .*int32",
        ),
        (torch.zeros(9), torch.zeros(2), TypeError, "bits: .*float32"),
        (torch.zeros(9), torch.zeros(1, dtype=torch.uint8), ValueError, r"bits: .*\(2,\).*\(1,\)"),
    ]:
        with pytest.raises(error, match=message):
            where(grad, bits, 1.0)
