"""Each small delta does what its formula says, trains, and is merged."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

import sparse_ft as sft
from sparse_ft.reparametrised import (
    HeadOffsets,
    HeadScales,
    RotatedValues,
    SalientMap,
    ScaleShift,
    merge,
    put,
)

OUT, IN = 6, 12


def linear(bias=True):
    return nn.Linear(IN, OUT, bias=bias)


def norm_in_eval():
    norm = nn.BatchNorm2d(5).eval()
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var)
    return norm


def scaled(layer, part, x):
    y, dim = layer(x), {nn.Conv2d: 1, nn.Conv1d: 1, nn.BatchNorm2d: 1, nn.GroupNorm: 1}
    shape = [1] * y.dim()
    shape[dim.get(type(layer), -1)] = -1
    return y * part.scale.view(shape) + part.shift.view(shape)


def mapped(layer, part, x):
    y = layer(x)
    change = torch.eye(y.size(-1), dtype=y.dtype)
    change[part.channels[:, None], part.channels] += part.values
    return y @ change.T


def offset(layer, part, x):
    whole = x.new_zeros(IN // 4, 4)
    whole[part.heads] += part.values
    return layer(x + whole.view(-1))


def scaled_heads(layer, part, x):
    whole = x.new_ones(IN // 4, 4)
    whole[part.heads] += part.values
    return layer(x * whole.view(-1))


def rotated(layer, part, x):
    return layer(x) + x[..., [0, 3]] @ part.values.T


CASES = {
    "offsets": (linear, lambda: HeadOffsets([0, 2], 4), offset, (2, 3, IN)),
    "offsets, Conv1D": (lambda: Conv1D(OUT, IN), lambda: HeadOffsets([1], 4), offset, (3, IN)),
    "new bias": (lambda: linear(False), lambda: HeadOffsets([1], 4, True), offset, (3, IN)),
    "scales": (linear, lambda: HeadScales([0, 2], 4), scaled_heads, (2, 3, IN)),
    "scales, Conv1D": (lambda: Conv1D(OUT, IN), lambda: HeadScales([1], 4), scaled_heads, (3, IN)),
    "map": (linear, lambda: SalientMap([1, 4, 5]), mapped, (2, 3, IN)),
    "map, no bias": (lambda: linear(False), lambda: SalientMap([1, 4]), mapped, (3, IN)),
    "map, Conv1D": (lambda: Conv1D(OUT, IN), lambda: SalientMap([1, 4]), mapped, (3, IN)),
    "SSF": (linear, ScaleShift, scaled, (2, 3, IN)),
    "SSF, new bias": (lambda: linear(False), lambda: ScaleShift(new_bias=True), scaled, (3, IN)),
    "SSF, Conv1D": (lambda: Conv1D(OUT, IN), ScaleShift, scaled, (3, IN)),
    "SSF, convolution": (lambda: nn.Conv2d(4, 6, 3, groups=2), ScaleShift, scaled, (2, 4, 5, 5)),
    "SSF, LayerNorm": (lambda: nn.LayerNorm(IN), ScaleShift, scaled, (3, IN)),
    "SSF, GroupNorm": (lambda: nn.GroupNorm(2, 4), ScaleShift, scaled, (2, 4, 5)),
    "SSF, BatchNorm": (norm_in_eval, ScaleShift, scaled, (2, 5, 3, 3)),
    "rotated": (linear, lambda: RotatedValues(sft.Columns([0, 3]), identity), rotated, (3, IN)),
}


def identity(weight):
    from sparse_ft.reparametrised import Basis, Identity

    return Basis(Identity(weight.size(0)), Identity(weight.size(1)))


@pytest.fixture(params=CASES)
def case(request):
    """(a layer with a delta, the same without, the delta, its formula, an input)"""
    make, part, formula, shape = CASES[request.param]
    torch.manual_seed(0)
    layer = make().double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    plain, part = copy.deepcopy(layer), part()
    put(nn.ModuleDict({"layer": layer}), {"layer": part})
    return layer, plain, part, formula, torch.randn(*shape, dtype=torch.float64)


def disturb(part):
    with torch.no_grad():
        for parameter in part.parameters():
            parameter += 0.3 * torch.randn_like(parameter)


def test_at_first_nothing_changes(case):
    layer, plain, _, _, x = case
    assert torch.equal(layer(x), plain(x))


def test_its_formula_and_gradients(case):
    layer, plain, part, formula, x = case
    disturb(part)
    x.requires_grad_()
    want, got = formula(plain, part, x), layer(x)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    inputs, grad = [x, *part.parameters()], torch.randn_like(want)
    ours = torch.autograd.grad(got, inputs, grad)
    for a, b in zip(ours, torch.autograd.grad(want, inputs, grad), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    assert not any(parameter.requires_grad for parameter in layer.parameters(recurse=False))


def test_merge_then_forward(case):
    layer, plain, part, _, x = case
    disturb(part)
    want = layer(x)
    model = nn.ModuleDict({"layer": layer})
    merge(model)
    torch.testing.assert_close(layer(x), want, atol=1e-12, rtol=0)
    assert not list(layer.children()) and not layer._forward_hooks and not layer._forward_pre_hooks
    has_new_bias = plain.bias is None and layer.bias is not None
    assert list(layer.state_dict()) == [*plain.state_dict(), *["bias"] * has_new_bias]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["offsets", "scales", "map", "SSF", "SSF, convolution"])
def test_merge_is_exact_to_the_rounding_of_its_dtype(name, dtype):
    make, part, formula, shape = CASES[name]
    layer, part = make().to(dtype), part()
    plain = copy.deepcopy(layer).double()
    put(nn.ModuleDict({"layer": layer}), {"layer": part})
    assert all(parameter.dtype == torch.float32 for parameter in part.parameters())
    disturb(part)
    x = torch.randn(*shape, dtype=dtype)
    want = formula(plain, copy.deepcopy(part).double(), x.double())
    bound = 8 * torch.finfo(dtype).eps * want.abs().max()
    assert layer(x).dtype == dtype and (layer(x) - want).abs().max() < bound
    merge(nn.ModuleDict({"layer": layer}))
    assert layer.weight.dtype == dtype and (layer(x) - want).abs().max() < bound


REFUSED = {
    "no bias": (lambda: linear(False), lambda: HeadOffsets([0], 4), "has no bias.*new_bias=True"),
    "SSF, no bias": (lambda: linear(False), ScaleShift, "has no bias.*new_bias=True"),
    "SSF, RMSNorm": (lambda: nn.RMSNorm(IN), ScaleShift, "a RMSNorm may do more"),
    "SSF, LayerNorm": (lambda: nn.LayerNorm(IN, bias=False), ScaleShift, "has no bias, which"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_merge_is_refused_by_name(name):
    make, part, why = REFUSED[name]
    layer, part = make(), part()
    model = nn.ModuleDict({"layer": layer, "other": linear()})
    put(model, {"other": SalientMap([0]), "layer": part})
    disturb(part)
    disturb(model["other"].salient_map)
    x = torch.randn(3, IN)
    want, state = model["other"](x), copy.deepcopy(model.state_dict())
    for call in (merge, sft.revert):
        with pytest.raises(ValueError, match=f"'layer'.*{why}"):
            call(model)
    assert torch.equal(model["other"](x), want)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[key]), key


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: HeadOffsets([0, 3], 4), ValueError, "3 heads of 4; got heads up to 3"),
        (lambda: HeadOffsets([0], 5), ValueError, "heads: the layer reads 12"),
        (lambda: HeadOffsets([1, 0], 4), ValueError, "heads: expected ascending"),
        (lambda: HeadOffsets([], 4), ValueError, "heads: expected ascending"),
        (lambda: HeadOffsets([0], 0), ValueError, "head_dim.*0"),
        (lambda: SalientMap([6]), IndexError, "channels: 6 is out of range for 6"),
        (lambda: SalientMap([2, 1]), ValueError, "sorted"),
        (lambda: nn.Identity(), TypeError, "parts: expected a Reparametrised for 'layer'"),
    ],
)
def test_refusals(make, error, says):
    layer = linear()
    with pytest.raises(error, match=says):
        put(nn.ModuleDict({"layer": layer}), {"layer": make()})
    assert layer.weight.requires_grad and not list(layer.children())


def test_refuses_layers_of_other_kinds():
    layers = nn.ModuleDict({"norm": nn.LayerNorm(12), "up": nn.ConvTranspose2d(3, 3, 3)})
    with pytest.raises(TypeError, match="'norm'.*stands on a linear layer, got LayerNorm"):
        put(layers, {"norm": HeadOffsets([0], 4)})
    with pytest.raises(TypeError, match="'up'.*ConvTranspose2d"):
        put(layers, {"up": ScaleShift()})


def test_unbatched_images():
    layer = nn.Conv2d(4, 6, 3)
    x = torch.randn(4, 5, 5)
    plain = copy.deepcopy(layer)
    part = ScaleShift()
    put(nn.ModuleDict({"layer": layer}), {"layer": part})
    disturb(part)
    torch.testing.assert_close(
        layer(x),
        F.conv2d(
            x, plain.weight * part.scale.view(-1, 1, 1, 1), plain.bias * part.scale + part.shift
        ),
    )
