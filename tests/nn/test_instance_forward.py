"""A layer whose forward was wrapped on the instance (accelerate's hooks, patches) trains, whenever
that was done.
"""

import copy

import pytest
import torch
from torch import nn

import sparse_ft as sft

hooks = pytest.importorskip("accelerate.hooks")
Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D

pytestmark = pytest.mark.usefixtures("made_on_device")

LAYERS = {
    "linear": (lambda: nn.Linear(4, 5), sft.Columns([1]), torch.linspace(-1, 1, 24).view(2, 3, 4)),
    "Conv1D": (lambda: Conv1D(5, 4), sft.Rows([1]), torch.linspace(-1, 1, 24).view(2, 3, 4)),
    "embedding": (
        lambda: nn.Embedding(5, 4),
        sft.Rows([1, 3]),
        torch.tensor([[1, 3, 0], [4, 1, 1]]),
    ),
    "convolution": (
        lambda: nn.Conv1d(4, 5, 2),
        sft.Rows([1]),
        torch.linspace(-1, 1, 48).view(2, 4, 6),
    ),
}


def by_accelerate(layer):
    hooks.add_hook_to_module(layer, hooks.ModelHook())


def by_patch(layer):
    before = layer.forward
    layer.forward = lambda x: 2 * before(x)


def by_own_product(layer):
    """A patch that never calls what was there."""
    if isinstance(layer, nn.Linear):
        layer.forward = lambda x: nn.functional.linear(x, layer.weight)
    else:
        by_patch(layer)


def by_class_method(layer):
    function = type(layer).forward
    layer.forward = lambda x: 2 * function(layer, x)


WRAPS = [by_accelerate, by_patch, by_own_product, by_class_method]


@pytest.fixture(params=LAYERS)
def case(request):
    make, selection, x = LAYERS[request.param]
    model = nn.Sequential(make())
    return model, copy.deepcopy(model), selection, x


def compare(model, dense, selection, x):
    outputs = model(x), dense(x)
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.sin().sum().backward()
    (values,) = (p for name, p in model.named_parameters() if name.endswith("values"))
    grad = dense[0].weight.grad
    torch.testing.assert_close(
        values.grad, selection.gather(grad.reshape(sft.matrix_shape(dense, "0.weight")))
    )


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("when", ["before convert", "after convert"])
def test_a_wrapped_forward_trains(case, wrap, when):
    model, dense, selection, x = case
    wrap(dense[0])
    if when == "before convert":
        wrap(model[0])
    sft.convert(model, {"0.weight": selection})
    if when == "after convert":
        wrap(model[0])
    compare(model, dense, selection, x)


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_forward_that_was_wrapped_while_converted_runs_after_revert(case, wrap):
    model, dense, selection, x = case
    sft.convert(model, {"0.weight": selection})
    wrap(model[0])
    sft.revert(model)
    wrap(dense[0])
    outputs = model(x), dense(x)
    assert torch.equal(*outputs)
    for output in outputs:
        output.sin().sum().backward()
    assert torch.equal(model[0].weight.grad, dense[0].weight.grad)


def test_accelerate_takes_its_hook_away_after_revert(case):
    model, dense, selection, x = case
    sft.convert(model, {"0.weight": selection})
    by_accelerate(model[0])
    sft.revert(model)
    hooks.remove_hook_from_module(model[0])
    assert torch.equal(model(x), dense(x))


def test_a_device_map_with_its_hooks_trains(case, device):
    from accelerate import dispatch_model

    model, dense, selection, x = case
    place = str(device)
    dispatch_model(model, {"0": place}, main_device=place, force_hooks=True)
    sft.convert(model, {"0.weight": selection})
    compare(model, dense, selection, x)


def test_a_lean_forward_is_not_someone_elses():
    model = nn.Sequential(nn.Linear(4, 5))
    sft.lean(model)
    report = sft.convert(model, {"0.weight": sft.Columns([1])})
    assert report.replaced == ["0.weight"]
