"""Lean convolutions of which whole channels train.

What is kept, and gradients without a dense one.
"""

import copy

import pytest
import torch
from helpers.lean_twins import WAYS, kept, run, twins
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import sparse_ft as sft
from sparse_ft.lean_modules.conv import _Convolution

pytestmark = pytest.mark.usefixtures("on_device")

# On a weight [8, 6, 3, 3]: the matrix is [8, 54], a channel has 9 columns.
ROWS = sft.Rows([1, 2, 7])
CHANNELS = sft.Columns([*range(9, 18), *range(36, 45)])
LEFT = {
    "part of a channel": (sft.Columns([*range(9, 18), 20]), {}),
    "as many columns as a channel": (sft.Columns(range(10, 19)), {}),
    "entries": (sft.Entries([3, 60]), {}),
    "groups, rows": (ROWS, dict(groups=2)),
    "groups, columns": (sft.Columns(range(9, 18)), dict(groups=2)),
}
OPTIONS = {
    "plain": {},
    "strided": dict(stride=2, padding=1, dilation=2),
    "reflect": dict(padding=1, padding_mode="reflect"),
    "same": dict(padding="same"),
    "no bias": dict(bias=False),
}
KINDS = {"rows": ROWS, "whole channels": CHANNELS}


def selected(selection, kind=nn.Conv2d, dtype=torch.float32, **options):
    channels = (8, 6) if kind is nn.ConvTranspose2d else (6, 8)
    model = nn.Sequential(kind(*channels, 3, **options).to(dtype))
    sft.convert(model, {"0.weight": selection})
    return twins(model)


def input_of(kind=nn.Conv2d):
    return torch.randn(3, 8 if kind is nn.ConvTranspose2d else 6, 9, 8)


def assert_same_gradients(plain, lean, x):
    """Outputs and input gradients are torch's bits.

    The gradient of values is no further from fp64 than twice torch's own.
    """
    wanted, got = run(plain, x), run(lean, x)
    exact = run(copy.deepcopy(plain).double(), x.double())[2]
    assert torch.equal(wanted[0], got[0]) and torch.equal(wanted[1], got[1])
    assert got[2].keys() == exact.keys()
    for name, gradient in exact.items():
        ours, torchs = got[2][name], wanted[2][name]
        assert ours.dtype == torchs.dtype and ours.shape == torchs.shape
        allowed = (
            2 * (torchs - gradient).abs().max()
            + torch.finfo(torch.float32).eps * gradient.abs().max()
        )
        assert (ours - gradient).abs().max() <= allowed, name


@pytest.mark.parametrize(
    "kind,options",
    [(nn.Conv2d, options) for options in OPTIONS.values()]
    + [(nn.ConvTranspose2d, OPTIONS[name]) for name in ("plain", "strided", "no bias")],
)
@pytest.mark.parametrize("selection", KINDS.values(), ids=KINDS)
def test_gradients(kind, selection, options):
    plain, lean = selected(selection, kind, **options)
    x = input_of(kind)
    assert_same_gradients(plain, lean, x)
    assert_same_gradients(plain, lean, x[0])


@pytest.mark.parametrize("selection", KINDS.values(), ids=KINDS)
def test_one_and_three_dimensions(selection):
    for conv, size in ((nn.Conv1d, (9,)), (nn.Conv3d, (5, 4, 6))):
        model = nn.Sequential(conv(6, 8, 3))
        kernel = model[0].weight[0, 0].numel()
        columns = sft.Columns([*range(kernel), *range(4 * kernel, 5 * kernel)])
        sft.convert(model, {"0.weight": ROWS if selection is ROWS else columns})
        assert_same_gradients(*twins(model), torch.randn(3, 6, *size))


def test_bytes_kept():
    x = input_of()
    plain, lean = selected(CHANNELS)
    assert kept(plain, x) >= x.numel() * 4
    assert kept(lean, x) == x.numel() * 4 * 2 // 6 + 2 * 4, "two of six channels, and their numbers"
    plain, lean = selected(ROWS)
    assert kept(lean, x) == x.numel() * 4
    plain, lean = selected(ROWS, nn.ConvTranspose2d)
    x = input_of(nn.ConvTranspose2d)
    assert kept(lean, x) == x.numel() * 4 * 3 // 8, "three of eight channels"


class Shapes(TorchDispatchMode):
    """The shapes of every tensor that an operator returns."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen += [
            t.shape
            for t in (out if isinstance(out, (tuple, list)) else [out])
            if isinstance(t, torch.Tensor)
        ]
        return out


@pytest.mark.parametrize("selection", KINDS.values(), ids=KINDS)
def test_no_dense_gradient_is_made(selection):
    shapes = []
    for model in selected(selection):
        out = model(input_of())
        with Shapes() as seen:
            out.sum().backward()
        shapes.append((8, 6, 3, 3) in map(tuple, seen.seen))
    assert shapes == [True, False]


@pytest.mark.parametrize("what", LEFT)
def test_other_selections_are_left_to_torch(what):
    selection, options = LEFT[what]
    plain, lean = selected(selection, **options)
    x = input_of()
    assert_same_gradients(plain, lean, x)
    assert kept(lean, x) == kept(plain, x)


@pytest.mark.parametrize("selection", KINDS.values(), ids=KINDS)
def test_every_way(selection):
    plain, lean = selected(selection)
    x = input_of()
    for name, way in WAYS.items():
        results = []
        for model in (plain, lean):
            twin = way(model)
            leaf = x.clone().requires_grad_()
            for p in model.parameters():
                p.grad = None
            twin(leaf * 1).square().sum().backward()
            holder = twin if isinstance(twin, nn.Module) else model
            results.append([leaf.grad, *(p.grad for p in holder.parameters() if p.requires_grad)])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_weights_have_fp32_values(dtype):
    for selection in KINDS.values():
        plain, lean = selected(selection, dtype=dtype)
        x = input_of().to(dtype)
        wanted, got = run(plain, x), run(lean, x)
        assert torch.equal(wanted[0], got[0]) and torch.equal(wanted[1], got[1])
        name = "0.weight_selected.values"
        assert got[2][name].dtype == torch.float32
        torch.testing.assert_close(
            got[2][name], wanted[2][name], rtol=2 * torch.finfo(dtype).eps, atol=1e-2
        )


@pytest.mark.parametrize("selection", KINDS.values(), ids=KINDS)
def test_training_moves_what_it_moves_without_lean(selection):
    models = selected(selection)
    x = input_of()
    for model in models:
        optimizer = sft.SelectiveAdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    plain, lean = (sft.revert(model)[0].weight.detach() for model in models)
    torch.testing.assert_close(plain, lean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dimension,selection", [(0, ROWS), (1, CHANNELS)], ids=KINDS)
@pytest.mark.parametrize("is_transposed", [False, True], ids=["conv", "transposed"])
def test_gradcheck(dimension, selection, is_transposed):
    base = torch.randn(8, 6, 3, 3, dtype=torch.float64)
    x = torch.randn(1, 8 if is_transposed else 6, 4, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6 if is_transposed else 8, dtype=torch.float64, requires_grad=True)
    values = selection.gather(base.flatten(1)).requires_grad_()
    channels = selection.index.to(x.device) if dimension == 0 else torch.tensor([1, 4])
    options = (2, 2), (1, 1), (1, 1), is_transposed, (0, 0), 1

    def function(x, values, bias):
        weight = selection.scatter_(base.flatten(1).clone(), values.detach()).view_as(base)
        return _Convolution.apply(x, weight, values, dimension, channels, bias, options)

    assert torch.autograd.gradcheck(function, (x, values, bias))


@pytest.mark.parametrize("selection", KINDS.values(), ids=KINDS)
def test_compile(selection):
    plain, lean = selected(selection)
    x = input_of()
    wanted = run(plain, x)
    got = run(torch.compile(lean), x)
    for a, b in zip(wanted[:2], got[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    for name, a in wanted[2].items():
        torch.testing.assert_close(lean.get_parameter(name).grad, a, rtol=1e-4, atol=1e-4)


def test_the_report_says_which_convolutions_make_no_dense_gradient():
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 4, 3), nn.Conv2d(4, 2, 3))
    plan = {
        "0.weight": sft.Rows([1]),
        "1.weight": sft.Columns(range(9, 18)),
        "2.weight": sft.Entries([5]),
    }
    report = sft.convert(model, plan, lean=True)
    assert report.transient == ["2.weight"] and str(report).count("lean convolution") == 2
    assert sft.summary(model).transient == ["2.weight"]
    sft.revert(model)
    assert sft.convert(model, plan).transient == list(plan)


def test_the_report_on_a_norm_with_selected_entries():
    model = nn.Sequential(nn.LayerNorm(6))
    assert sft.convert(model, {"0.weight": sft.Columns([1])}, lean=True).transient == ["0.weight"]
