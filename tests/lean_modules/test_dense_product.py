"""The dense products of a lean model.

By whoever is fastest, as exact as torch's, and torch's own where nothing is lean.
"""

import copy
import sys

import pytest
import torch
from torch import nn

import sparse_ft as sft
from sparse_ft.functional import lean_product, linear_cross_entropy
from sparse_ft.ops import _native

page = sys.modules["sparse_ft.ops.dense_product"]
rule = sys.modules["sparse_ft.ops._dense_rule"]
TOKENS, FEATURES, OUTPUTS = (4, 16), 512, 640  # enough multiplications for the panels

pytestmark = pytest.mark.skipif(_native.C is None, reason="the compiled part is missing")


@pytest.fixture(autouse=True)
def panels(monkeypatch):
    """The choice of an AMD processor with AVX-512, on whatever machine this runs.

    And how often it served.
    """
    served = []
    of_panels = page.dense_product_panels
    monkeypatch.setattr(rule, "choice", lambda: rule.Choice("panels", "test"))
    monkeypatch.setattr(page, "dense_product_panels", lambda *a: served.append(a) or of_panels(*a))
    return served


def layers():
    from transformers.pytorch_utils import Conv1D

    return {"Linear": nn.Linear(FEATURES, OUTPUTS), "Conv1D": Conv1D(OUTPUTS, FEATURES)}


def plan_of(name, structure):
    if structure is None:
        return {}
    by_rows = structure == "rows"
    lines = sft.Rows([1, 7, 300]) if by_rows else sft.Columns([2, 3, 400])
    return {"0.weight": sft.Entries([5, 900, 2000]) if structure == "entries" else lines}


def model_of(name, structure, lean):
    torch.manual_seed(0)
    model = nn.Sequential(layers()[name])
    plan = plan_of(name, structure)
    if plan:
        sft.convert(model, plan, lean=lean)
    else:
        model.requires_grad_(False)
        if lean:
            sft.lean(model)
    return model


def results(model, dtype=torch.float32):
    """Output and gradients towards the input and whatever trains."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*TOKENS, FEATURES, generator=generator).to(dtype).requires_grad_()
    y = model(x)
    grad_output = torch.randn(y.shape, generator=generator).to(y.dtype)
    y.backward(grad_output)
    trained = [p.grad for p in model.parameters() if p.requires_grad]
    return [y.detach(), x.grad, *trained]


@pytest.mark.parametrize("structure", [None, "rows", "columns", "entries"])
@pytest.mark.parametrize("name", ["Linear", "Conv1D"])
def test_both_products_are_served_and_as_exact_as_torchs(panels, name, structure):
    torchs = results(model_of(name, structure, lean=False))
    assert not panels
    ours = results(model_of(name, structure, lean=True))
    assert len(panels) == 2
    exact = results(model_of(name, structure, lean=False).double(), torch.float64)
    for got, theirs, right in zip(ours, torchs, exact, strict=True):
        assert got.shape == theirs.shape and got.dtype == theirs.dtype
        assert (got - right).norm() <= 2 * (theirs - right).norm()


@pytest.mark.parametrize("name", ["Linear", "Conv1D"])
@pytest.mark.parametrize("structure", [None, "columns"])
def test_without_lean_forwards_are_torchs_bit_for_bit(panels, name, structure):
    torch.manual_seed(0)
    plain = nn.Sequential(layers()[name])
    model = model_of(name, structure, lean=False)
    x = torch.randn(*TOKENS, FEATURES)
    assert torch.equal(model(x), plain(x)) and not panels
    sft.lean(model)
    with torch.no_grad():
        model(x)
    assert len(panels) == 1  # evaluation, too
    if structure:
        sft.revert(model)
        assert torch.equal(model(x), plain(x)) and len(panels) == 1


def test_lean_first_then_convert(panels):
    model = model_of("Linear", None, lean=True)
    sft.convert(model, {"0.weight": sft.Columns([2, 3, 400])})
    expected = results(model_of("Linear", "columns", lean=True))
    panels.clear()
    assert all(map(torch.equal, results(model), expected)) and len(panels) == 2


def test_an_operation_in_place_on_the_output(panels):
    for structure in (None, "columns"):
        model = nn.Sequential(*model_of("Linear", structure, lean=True), nn.ReLU(inplace=True))
        x = torch.randn(*TOKENS, FEATURES, requires_grad=True)
        y = model(x)
        y.sum().backward()
        assert panels and y._base is None
        panels.clear()


def test_under_autocast_and_compile_torch_serves(panels):
    model = model_of("Linear", "columns", lean=True)
    x = torch.randn(*TOKENS, FEATURES, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        model(x).sum().backward()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    compiled(x).sum().backward()
    assert not panels


@pytest.mark.parametrize("input_dim", [1, 0], ids=["Linear", "Conv1D"])
def test_gradcheck(input_dim):
    """In fp64, which torch serves; the numbers of the panels are held against fp64 above."""
    torch.manual_seed(0)
    wide = dict(dtype=torch.float64)
    weight, bias = torch.randn(5, 4, **wide), torch.randn(4 if input_dim == 0 else 5, **wide)
    selection = sft.Rows([1, 3])
    values = selection.gather(weight).requires_grad_()
    x = torch.randn(2, 3, weight.size(input_dim), requires_grad=True, **wide)
    part = selection.restrict(input_dim, weight.size(input_dim))

    def product(x, values):
        shown = selection.scatter_(weight.clone(), values.detach())
        return lean_product(x, shown, values, bias, part, input_dim)

    assert torch.autograd.gradcheck(product, (x, values))


@pytest.mark.parametrize("biased", [True, False])
def test_the_head_of_a_loss_without_logits(panels, biased):
    generator = torch.Generator().manual_seed(2)
    hidden, weight = (torch.randn(n, FEATURES, generator=generator) / 10 for n in (64, OUTPUTS))
    bias = torch.randn(OUTPUTS, generator=generator) if biased else None
    target = torch.randint(0, OUTPUTS, (64,), generator=generator)

    def gradient(cast, loss_of):
        state = cast(hidden).requires_grad_()
        added = None if bias is None else cast(bias)
        loss = loss_of(state, cast(weight), added)
        loss.backward()
        return loss.detach(), state.grad

    def dense(state, weight, added):
        return nn.functional.cross_entropy(nn.functional.linear(state, weight, added), target)

    def lean(state, weight, added):
        return linear_cross_entropy(state, weight, target, added)

    exact = gradient(torch.Tensor.double, dense)
    theirs = gradient(torch.Tensor.clone, dense)
    ours = gradient(torch.Tensor.clone, lean)
    assert len(panels) == 2
    one_rounding = torch.finfo(torch.float32).eps * exact[0]
    assert (ours[0] - exact[0]).abs() <= 2 * (theirs[0] - exact[0]).abs() + one_rounding
    assert (ours[1] - exact[1]).norm() <= 2 * (theirs[1] - exact[1]).norm()


def test_deepcopy_and_eight_bit_inputs(panels):
    model = model_of("Linear", "rows", lean=False)
    sft.lean(model, eight_bit_inputs=True)
    twin = copy.deepcopy(model)
    for each in (model, twin):
        panels.clear()
        results(each)
        assert len(panels) == 2
