"""activation and its gradient against fp64, allowed twice the error of plain PyTorch's own and its
autograd.
"""

import functools

import oracle
import pytest
import torch
import torch.nn.functional as F
from oracle import DTYPES, name_of

from sparse_ft import ops
from sparse_ft.ops._registry import reference

IMPLEMENTATIONS = {
    "op": (ops.activation, ops.activation_backward),
    "reference": (reference("activation"), reference("activation_backward")),
}
ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
}
NAMES = pytest.mark.parametrize("activation", ACTIVATIONS)
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)


@pytest.fixture(params=IMPLEMENTATIONS)
def activated(request):
    """(input, grad_output, activation) -> output, grad_input."""
    forward, backward = IMPLEMENTATIONS[request.param]
    return lambda input, grad, activation: (
        forward(input, activation),
        backward(grad, input, activation),
    )


def plain(input, grad, activation):
    input = input.detach().clone().requires_grad_()
    output = ACTIVATIONS[activation](input)
    return output.detach(), *torch.autograd.grad(output, input, grad)


def check(activated, input, grad, activation, slack=2.0**-126):
    """Largest and mean error of both results."""
    tensors = input.detach().cpu(), grad.detach().cpu()
    want = plain(*(t.double() for t in tensors), activation)
    oracle.assert_elementwise(
        activated(input, grad, activation), want, plain(*tensors, activation), slack
    )


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0, 30.0])
@DTYPE
@NAMES
def test_as_exact_as_plain(activated, activation, dtype, scale, device):
    input, grad = (torch.randn(31, 257, dtype=torch.float64).to(device, dtype) for _ in range(2))
    check(activated, input * scale, grad, activation)


@pytest.mark.parametrize(
    "shape", [(1,), (7,), (1, 1), (2, 3, 5), (1, 1000), (1000, 1), (3, 700)], ids=str
)
def test_shapes(activated, shape, device):
    # Few numbers: torch may be lucky.
    check(activated, *(torch.randn(shape, device=device) for _ in range(2)), "gelu", slack=1e-6)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0)], ids=str)
def test_nothing_to_do(activated, shape, device):
    empty = torch.empty(shape, device=device)
    assert all(t.shape == shape for t in activated(empty, empty, "silu"))
    assert activated(*(torch.zeros((), device=device) for _ in range(2)), "silu")[0].item() == 0


@DTYPE
def test_strides(activated, dtype, device):
    both = torch.randn(4, 9, 2 * 130, dtype=torch.float64).to(device, dtype)
    input, grad = both.chunk(2, -1)
    want = activated(input.contiguous(), grad.contiguous(), "silu")
    permuted = grad.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    for g in (grad, permuted, both.new_empty(4, 9, 260)[..., ::2].copy_(grad)):
        torch.testing.assert_close(activated(input, g, "silu"), want)
    one = torch.ones((), device=device, dtype=dtype).expand(4, 9, 130)  # the gradient of a sum
    torch.testing.assert_close(
        activated(input, one, "silu"), activated(input, one.contiguous(), "silu")
    )


@NAMES
def test_extreme_inputs(activation, device):
    input = oracle.extreme_numbers(device)
    one = torch.ones_like(input)
    results = ops.activation(input, activation), ops.activation_backward(one, input, activation)
    oracle.assert_where_known(results, plain(input.double().cpu(), one.double().cpu(), activation))


@DTYPE
@NAMES
def test_nan_reaches_exactly_its_own_results(activated, activation, dtype, device):
    for which in range(2):
        tensors = [torch.ones(700, device=device, dtype=dtype) for _ in range(2)]
        tensors[which][[3, 699]] = float("nan")
        output, grad_input = (t.isnan() for t in activated(*tensors, activation))
        hit = tensors[which].isnan()
        assert torch.equal(output, hit if which == 0 else hit & False)
        assert torch.equal(grad_input, hit)


@NAMES
@pytest.mark.parametrize("form", ["contiguous", "permuted", "sliced"])
def test_opcheck(activation, form, device):
    input, grad = (oracle.matrices((7, 5), torch.float32, device)[form] for _ in range(2))
    torch.library.opcheck(torch.ops.sparse_ft.activation.default, (input, activation))
    torch.library.opcheck(
        torch.ops.sparse_ft.activation_backward.default, (grad, input, activation)
    )


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"activation": "relu"}, ValueError, "activation: .*gelu_tanh.*'relu'"),
        ({"input": torch.zeros(2, 3, dtype=torch.int32)}, TypeError, "input: .*int32"),
        (
            {"grad": torch.zeros(3, 2)},
            ValueError,
            r"grad_output: expected the shape of input, \(2, 3\).*\(3, 2\)",
        ),
        ({"grad": torch.zeros(2, 3).bfloat16()}, TypeError, "grad_output: .*float32.*bfloat16"),
    ],
)
def test_errors_name_the_argument_and_its_value(activated, change, error, message):
    call = {"input": torch.zeros(2, 3), "grad": torch.zeros(2, 3), "activation": "silu"} | change
    with pytest.raises(error, match=message):
        activated(**call)
