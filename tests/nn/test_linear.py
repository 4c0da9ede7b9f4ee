"""SelectiveLinear in use: shapes, dtypes, autocast, checkpointing, accumulation, modes."""

import sys
import threading

import pytest
import torch
from helpers.small_linear import SELECTIONS
from torch import nn
from torch.utils.checkpoint import checkpoint

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")


@pytest.fixture(params=SELECTIONS)
def selection(request):
    return SELECTIONS[request.param]


def pair(selection, dtype=torch.float32, bias=True):
    """A dense layer and its selective twin."""
    torch.manual_seed(0)
    dense = nn.Linear(10, 7, bias=bias, dtype=dtype)
    twin = nn.Linear(10, 7, bias=bias, dtype=dtype)
    twin.load_state_dict(dense.state_dict())
    return dense, sft.nn.SelectiveLinear.from_linear(twin, selection)


def check_gradients(dense, module, x, forward=lambda m, x: m(x)):
    """Output, input gradient, bias gradient and values.grad against the dense layer in fp64-derived
    tolerance.
    """
    x1, x2 = (x.detach().clone().requires_grad_() for _ in range(2))
    out1, out2 = forward(dense, x1), forward(module, x2)
    assert torch.equal(out1, out2)
    grad = torch.randn_like(out1)
    out1.backward(grad)
    out2.backward(grad)
    assert x2.grad.dtype == x.dtype
    torch.testing.assert_close(x1.grad, x2.grad)
    torch.testing.assert_close(
        module.selection.gather(dense.weight.grad).to(module.values.dtype), module.values.grad
    )
    if dense.bias is not None and module.bias.requires_grad:
        torch.testing.assert_close(dense.bias.grad, module.bias.grad)


@pytest.mark.parametrize(
    "shape", [(10,), (5, 10), (1, 10), (2, 3, 10), (2, 1, 3, 10), (0, 10), (2, 0, 10)], ids=str
)
@pytest.mark.parametrize("bias", [True, False])
def test_shapes(selection, shape, bias):
    dense, module = pair(selection, bias=bias)
    check_gradients(dense, module, torch.randn(shape))


def test_inputs_that_are_not_contiguous(selection):
    dense, module = pair(selection)
    check_gradients(dense, module, torch.randn(10, 6).T)
    check_gradients(*pair(selection), torch.randn(3, 4, 20)[:, ::2, ::2])


def test_gradient_that_is_expanded(selection):
    dense, module = pair(selection)
    x = torch.randn(4, 10)
    dense(x).sum().backward()
    module(x).sum().backward()
    torch.testing.assert_close(selection.gather(dense.weight.grad), module.values.grad)


def test_frozen_bias_and_frozen_values(selection):
    _, module = pair(selection)
    module.bias.requires_grad_(False)
    x = torch.randn(4, 10, requires_grad=True)
    module(x).sum().backward()
    assert module.bias.grad is None and module.values.grad is not None
    module.values.requires_grad_(False)
    module.values.grad = None
    module(x).sum().backward()
    assert module.values.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit(selection, dtype):
    dense, module = pair(selection, dtype)
    oracle, _ = pair(selection, torch.float64)
    oracle.load_state_dict(dense.state_dict())
    x, grad = torch.randn(64, 10).to(dtype), torch.randn(64, 7).to(dtype)
    assert torch.equal(dense(x), module(x))
    for m, t in ((oracle, torch.float64), (dense, dtype), (module, dtype)):
        m(x.to(t)).backward(grad.to(t))
    true = selection.gather(oracle.weight.grad)
    torchs = (selection.gather(dense.weight.grad).double() - true).abs().max()
    ours = (module.values.grad.double() - true).abs().max()
    assert ours <= 2 * torchs + 1e-6
    assert module.values.grad.dtype == torch.float32


def test_autocast_dtypes_and_no_weight_copy(selection):
    dense, module = pair(selection)
    x = torch.randn(6, 10, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        with torch.autocast(x.device.type, torch.bfloat16):
            out = module(x)
            assert torch.equal(out, dense(x))
    pointers = {t.data_ptr() for t in saved[:2]}
    assert module.weight.data_ptr() in pointers, "the weight itself is saved, not its bf16 copy"
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert x.grad.dtype == module.values.grad.dtype == module.bias.grad.dtype == torch.float32


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing(selection, use_reentrant):
    dense, module = pair(selection)
    check_gradients(
        dense,
        module,
        torch.randn(2, 3, 10),
        lambda m, x: checkpoint(lambda y: m(y).relu(), x, use_reentrant=use_reentrant),
    )


@pytest.mark.parametrize("requires_grad", [True, False])
def test_checkpoint_whose_input_comes_back_contiguous(selection, requires_grad):
    """As offloading brings it back: what the second forward saves looks as in the first.

    (nn.Linear's does so sometimes.)
    """
    _, module = pair(selection)
    x = torch.randn(3, 2, 10).transpose(0, 1).requires_grad_(requires_grad)
    module(x).relu().sum().backward()
    expected, module.values.grad = module.values.grad, None
    with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.contiguous, lambda t: t):
        checkpoint(lambda y: module(y).relu(), x, use_reentrant=False).sum().backward()
    torch.testing.assert_close(module.values.grad, expected)


def test_saved_tensors_hooks(selection):
    dense, module = pair(selection)
    with torch.autograd.graph.save_on_cpu():
        check_gradients(dense, module, torch.randn(4, 10))


def test_accumulation_and_one_module_twice(selection):
    dense, module = pair(selection)
    xs = torch.randn(3, 4, 10)
    for x in xs:
        dense(x).square().sum().backward()
        module(x).square().sum().backward()
    torch.testing.assert_close(selection.gather(dense.weight.grad), module.values.grad)
    dense.zero_grad(), module.zero_grad()
    square = pad = torch.randn(7, 10)
    check_gradients(dense, module, xs[0], lambda m, x: m(m(x) @ pad) @ square)


def test_modes(selection):
    dense, module = pair(selection)
    x = torch.randn(4, 10, requires_grad=True)
    with torch.no_grad():
        out = module(x)
    assert torch.equal(out, dense(x)) and not out.requires_grad
    with torch.no_grad():
        module.values.add_(1)
    with torch.inference_mode():
        fresh = module(torch.randn(4, 10))
    assert fresh.is_inference()
    module(x).sum().backward()
    assert module.values.grad is not None


def test_double_backward_is_refused(selection):
    _, module = pair(selection)
    x = torch.randn(4, 10, requires_grad=True)
    with pytest.raises(RuntimeError, match="double backward.*sft.revert"):
        torch.autograd.grad(module(x).square().sum(), x, create_graph=True)


def test_it_is_a_linear(selection):
    _, module = pair(selection)
    assert isinstance(module, nn.Linear)
    assert module.in_features == 10 and module.out_features == 7
    assert type(selection).__name__ in repr(module)
    assert [name for name, p in module.named_parameters() if p.requires_grad] == ["bias", "values"]


@pytest.mark.parametrize(
    "features, selection", [((6, 0), sft.Columns([1])), ((0, 5), sft.Rows([1]))]
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_layer_without_entries(features, selection):
    layer = sft.nn.SelectiveLinear.from_linear(nn.Linear(*features), selection)
    layer(torch.randn(3, features[0])).sum().backward()
    assert layer.values.grad.numel() == 0
    sft.SelectiveAdamW(layer.parameters()).step()


def test_layers_in_several_threads(device):
    """They share what was kept of an input: looking it up while others add to it must not fail."""

    def work(layer):
        try:
            for _ in range(500):
                layer(torch.randn(3, 10, device=device)).sum().backward()
        except RuntimeError as error:
            errors.append(error)

    errors, interval = [], sys.getswitchinterval()
    layers = [
        sft.nn.SelectiveLinear.from_linear(nn.Linear(10, 7), sft.Columns([1, 3])) for _ in range(4)
    ]
    threads = [threading.Thread(target=work, args=(layer,)) for layer in layers]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors
