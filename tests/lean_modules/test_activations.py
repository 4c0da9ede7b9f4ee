"""Lean activations that use the op.

As exact as torch's own, the same bytes kept, and torch's own wherever it is the better.
"""

import copy

import pytest
import torch
from helpers.lean_twins import kept, twins
from torch import nn

from sparse_ft import ops
from sparse_ft.lean_modules import activations
from sparse_ft.rebuild import source_of

pytestmark = pytest.mark.usefixtures("on_device")

MODULES = {"silu": nn.SiLU, "gelu": nn.GELU, "gelu_tanh": lambda: nn.GELU(approximate="tanh")}
NAMES = pytest.mark.parametrize("name", MODULES)


@pytest.fixture(autouse=True)
def small_inputs_count(monkeypatch):
    worth = {dtype: dict.fromkeys(names, 100) for dtype, names in activations.WORTH.items()}
    monkeypatch.setattr(activations, "WORTH", worth)
    # Without it too: the reference is the same function.
    monkeypatch.setitem(ops.SERVED["activation"], "cpu", ("native", ""))


@pytest.fixture
def calls(monkeypatch):
    """The shapes for which the op was called."""
    seen, op = [], ops.activation
    monkeypatch.setattr(
        ops, "activation", lambda x, name: seen.append(tuple(x.shape)) or op(x, name)
    )
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@NAMES
def test_as_exact_as_torch(name, dtype, calls):
    plain, lean = twins(nn.Sequential(MODULES[name]()))
    x = (3 * torch.randn(40, 60)).to(dtype)
    grad = torch.randn(40, 60).to(dtype)
    results = []
    for model, input in ((plain, x.double()), (plain, x), (lean, x)):
        input = input.detach().requires_grad_()
        output = model(input)
        output.backward(grad.to(output.dtype))
        results.append((output.detach(), input.grad))
    assert calls == [(40, 60)]
    for want, theirs, got in zip(*results, strict=True):
        assert got.dtype == dtype
        assert (got.double() - want).abs().max() <= 2 * (theirs.double() - want).abs().max()


@NAMES
def test_keeps_the_input_alone(name, calls):
    plain, lean = twins(nn.Sequential(nn.Linear(8, 8), MODULES[name]()))
    x = torch.randn(50, 8)
    assert kept(lean, x) == kept(plain, x) and calls


@NAMES
def test_without_gradients_it_is_the_same_function(name, calls):
    _, lean = twins(nn.Sequential(MODULES[name]()))
    x = torch.randn(40, 60)
    with torch.no_grad():
        alone = lean(x)
    assert torch.equal(alone, lean(x.requires_grad_()).detach()) and len(calls) == 2


@NAMES
def test_torch_serves_the_rest(name, calls):
    plain, lean = twins(nn.Sequential(MODULES[name]()))
    image = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    for x in (torch.randn(40, 60).double(), torch.randn(9, 11), torch.randn(60, 40).t(), image):
        got, want = lean(x), plain(x)
        assert torch.equal(got, want) and got.stride() == want.stride()
    x = torch.randn(40, 60)
    assert torch.equal(torch.func.vmap(lean)(x), plain(x))
    assert torch.equal(torch.compile(lean, backend="eager", fullgraph=True)(x), plain(x))
    assert not calls


def test_the_output_is_made_again_by_the_same_function(calls):
    """Columns of it too, although they are few."""
    lean = twins(nn.Sequential(nn.GELU()))[1]
    x = torch.randn(40, 60, requires_grad=True) * 1
    output = lean(x)
    source, features = source_of(output), torch.tensor([0, 59])
    assert torch.equal(source.rebuild(source.tensors(), features), output.detach()[:, features])
    assert calls == [(40, 60), (40, 2)]
    assert copy.deepcopy(lean)(x).equal(output)


@NAMES
def test_who_reads_all_of_it_leaves_the_derivative_to_its_backward(name, monkeypatch):
    """Same bits as where nobody does, at once and again.

    Nothing is left where backward does not come.
    """
    lean = twins(nn.Sequential(MODULES[name]()))[1]
    x = (3 * torch.randn(40, 60)).requires_grad_()
    grad = torch.randn(40, 60)
    output = lean(x)
    (want,) = torch.autograd.grad(output, x, grad, retain_graph=True)
    source, made = source_of(output), []
    other = torch.ones(40, 60, requires_grad=True)
    read = output * other
    tensors = source.tensors()
    read.grad_fn.register_prehook(lambda _: made.append(source.rebuild(tensors)))
    backwards, op = [], ops.activation_backward
    monkeypatch.setattr(
        ops, "activation_backward", lambda *operands: backwards.append(1) or op(*operands)
    )
    for _ in range(2):
        (got,) = torch.autograd.grad(read, x, grad, retain_graph=True)
        assert torch.equal(got, want)
    torch.autograd.grad(read, other, grad, retain_graph=True)
    assert output.grad_fn.handover.take() is None
    assert len(made) == 3 and all(torch.equal(m, output) for m in made)
    assert len(backwards) == (0 if name == "gelu" else 2)


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed", "sliced", "empty"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
def test_relu_is_torchs_bit_for_bit(dtype, layout, inplace):
    x = torch.randn(2, 9, 5, 7).to(dtype)
    x[0, 3], x[1, 2, 0], x[1, 1, 1] = float("nan"), -0.0, -float("inf")
    x = {
        "contiguous": x,
        "channels last": x.to(memory_format=torch.channels_last),
        "transposed": x.transpose(1, 2),
        "sliced": x[..., ::2],
        "empty": x[:0],
    }[layout]
    plain, lean = twins(nn.Sequential(nn.ReLU(inplace=inplace)))
    results = []
    for model in (plain, lean):
        leaf = x.clone().requires_grad_()
        given = leaf * 1
        version = given._version
        output = model(given)
        assert (output is given) == inplace and (given._version > version) == inplace
        torch.manual_seed(0)
        output.backward(torch.randn_like(output))
        results.append((output.detach(), leaf.grad))
    for a, b in zip(*results, strict=True):
        assert (
            torch.equal(a.nan_to_num(), b.nan_to_num())
            and torch.equal(a.isnan(), b.isnan())
            and a.stride() == b.stride()
        )
        assert torch.equal(a.nan_to_num().signbit(), b.nan_to_num().signbit())
