"""gated_product and its gradients against fp64, allowed twice the error of plain PyTorch's
act(gate) * up and its autograd.
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
    "op": (ops.gated_product, ops.gated_product_backward),
    "reference": (reference("gated_product"), reference("gated_product_backward")),
}
ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
NAMES = pytest.mark.parametrize("activation", ACTIVATIONS)
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)


@pytest.fixture(params=IMPLEMENTATIONS)
def gated(request):
    """(gate, up, grad_output, activation) -> output, grad_gate, grad_up."""
    forward, backward = IMPLEMENTATIONS[request.param]
    return lambda gate, up, grad, activation: (
        forward(gate, up, activation),
        *backward(grad, gate, up, activation),
    )


def plain(gate, up, grad, activation):
    gate, up = gate.detach().clone().requires_grad_(), up.detach().clone().requires_grad_()
    output = ACTIVATIONS[activation](gate) * up
    return output.detach(), *torch.autograd.grad(output, (gate, up), grad)


def check(gated, gate, up, grad, activation, slack=2.0**-126):
    """Largest and mean error of all three results."""
    tensors = [t.detach().cpu() for t in (gate, up, grad)]
    want = plain(*(t.double() for t in tensors), activation)
    oracle.assert_elementwise(
        gated(gate, up, grad, activation), want, plain(*tensors, activation), slack
    )


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0, 30.0])
@DTYPE
@NAMES
def test_as_exact_as_plain(gated, activation, dtype, scale, device):
    gate, up, grad = (torch.randn(31, 257, dtype=torch.float64).to(device, dtype) for _ in range(3))
    check(gated, gate * scale, up, grad, activation)


@pytest.mark.parametrize(
    "shape", [(1,), (7,), (1, 1), (2, 3, 5), (1, 1000), (1000, 1), (3, 700)], ids=str
)
def test_shapes(gated, shape, device):
    # Few numbers: torch may be lucky.
    check(gated, *(torch.randn(shape, device=device) for _ in range(3)), "silu", slack=1e-6)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0)], ids=str)
def test_nothing_to_do(gated, shape, device):
    empty = torch.empty(shape, device=device)
    assert all(t.shape == shape for t in gated(empty, empty, empty, "silu"))
    assert gated(*(torch.ones((), device=device) for _ in range(3)), "relu")[0].item() == 1


@DTYPE
def test_halves_of_one_projection_and_other_strides(gated, dtype, device):
    both = torch.randn(4, 9, 2 * 130, dtype=torch.float64).to(device, dtype)
    gate, up = both.chunk(2, -1)
    grad = torch.randn(4, 9, 130, dtype=torch.float64).to(device, dtype)
    want = gated(gate.contiguous(), up.contiguous(), grad, "silu")
    strided = (
        torch.randn(130, 9, 4, dtype=torch.float64)
        .to(device, dtype)
        .copy_(grad.permute(2, 1, 0))
        .permute(2, 1, 0)
    )
    for g in (grad, strided, both.new_empty(4, 9, 260)[..., ::2].copy_(grad)):
        torch.testing.assert_close(gated(gate, up, g, "silu"), want)
    one = torch.ones((), device=device, dtype=dtype).expand(4, 9, 130)  # the gradient of a sum
    torch.testing.assert_close(
        gated(gate, up, one, "silu"), gated(gate, up, one.contiguous(), "silu")
    )


@NAMES
def test_extreme_gates(activation, device):
    gate = oracle.extreme_numbers(device)
    one = torch.ones_like(gate)
    results = (
        ops.gated_product(gate, one, activation),
        *ops.gated_product_backward(one, gate, one, activation),
    )
    oracle.assert_where_known(
        results, plain(*(t.double().cpu() for t in (gate, one, one)), activation)
    )


@DTYPE
@NAMES
def test_nan_reaches_exactly_its_own_results(gated, activation, dtype, device):
    for which in range(3):
        tensors = [torch.ones(700, device=device, dtype=dtype) for _ in range(3)]
        tensors[which][[3, 699]] = float("nan")
        output, grad_gate, grad_up = (t.isnan() for t in gated(*tensors, activation))
        hit = tensors[which].isnan()
        assert torch.equal(output, hit if which < 2 else hit & False)
        if not (activation == "relu" and which == 0):  # its slope is 0 or 1, whatever the gate
            assert torch.equal(grad_gate, hit)
        assert torch.equal(grad_up, hit if which != 1 else hit & False)


@NAMES
@pytest.mark.parametrize("form", ["contiguous", "permuted", "sliced"])
def test_opcheck(activation, form, device):
    gate, up, grad = (oracle.matrices((7, 5), torch.float32, device)[form] for _ in range(3))
    torch.library.opcheck(torch.ops.sparse_ft.gated_product.default, (gate, up, activation))
    torch.library.opcheck(
        torch.ops.sparse_ft.gated_product_backward.default, (grad, gate, up, activation)
    )


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"activation": "tanh"}, ValueError, "activation: .*gelu_tanh.*'tanh'"),
        ({"gate": torch.zeros(2, 3, dtype=torch.int32)}, TypeError, "gate: .*int32"),
        ({"up": torch.zeros(2, 4)}, ValueError, r"up: .*\(2, 3\).*\(2, 4\)"),
        ({"up": torch.zeros(2, 3).half()}, TypeError, "up: .*float32.*float16"),
        ({"grad": torch.zeros(3, 2)}, ValueError, r"grad_output: .*\(3, 2\)"),
        ({"grad": torch.zeros(2, 3).bfloat16()}, TypeError, "grad_output: .*bfloat16"),
    ],
)
def test_errors_name_the_argument_and_its_value(gated, change, error, message):
    call = {
        "gate": torch.zeros(2, 3),
        "up": torch.zeros(2, 3),
        "grad": torch.zeros(2, 3),
        "activation": "silu",
    } | change
    with pytest.raises(error, match=message):
        gated(**call)
