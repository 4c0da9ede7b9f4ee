"""Modules are recognised by what they do: known forms are lean, all others left and named."""

import copy

import pytest
import torch
from helpers.own_modules import (
    LLAMA,
    BareNorm,
    MetasMLP,
    OwnMLP,
    PlainNorm,
    SiluMLP,
    SometimesGated,
    Swish,
    TimmsLayerNorm,
    TorchsNorm,
    WideNorm,
)
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.resnet.modeling_resnet import ResNetConvLayer

import sparse_ft as sft
from sparse_ft.lean_modules.attach import lean_forward_of

pytestmark = pytest.mark.usefixtures("made_on_device")

KNOWN = {
    "norm": (PlainNorm, "llama_forward"),
    "norm in fp32": (WideNorm, "llama_forward"),
    "norm by torch's function": (TorchsNorm, None),
    "norm with an optional argument": (SometimesGated, "llama_forward"),
    "norm without a weight": (BareNorm, "bare_forward"),
    "LayerNorm": (TimmsLayerNorm, "layer_norm_forward"),
    "activation": (Swish, "silu_forward"),
    "gated MLP": (OwnMLP, "llama_mlp_forward"),
    "gated MLP of Meta's": (MetasMLP, "numbered_silu_mlp_forward"),
    "gated MLP by F.silu": (SiluMLP, "silu_mlp_forward"),
}


AS_LEAN = "norm by torch's function", "norm without a weight", "LayerNorm"  # keep no more in fp32


@pytest.mark.parametrize("name", KNOWN)
def test_modules_of_the_user_s_own(name):
    make, forward = KNOWN[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), make())
    plain, report = copy.deepcopy(model), sft.lean(model)
    assert "1" in report.changed and not report.left
    if forward is not None:
        assert lean_forward_of(model[1]).__name__ == forward
    x = torch.randn(3, 5, 8)
    assert torch.allclose(model(x), plain(x), atol=1e-6)
    ours, theirs = (sft.memory.ledger(m, x.requires_grad_()).total for m in (model, plain))
    assert ours < theirs or (ours == theirs and name in AS_LEAN)
    for twin in (copy.deepcopy(model), sft.revert(model)):
        assert torch.allclose(twin(x), plain(x), atol=1e-6)


def test_arguments_that_the_lean_forward_does_not_take():
    plain = SometimesGated()
    lean = copy.deepcopy(plain)
    sft.lean(lean)
    x, gate = torch.randn(3, 8), torch.randn(3, 8)
    assert torch.allclose(lean(x=x), plain(x))
    assert torch.equal(lean(x, gate), plain(x, gate)) and torch.equal(
        lean(x, gate=gate), plain(x, gate)
    )
    with pytest.raises(TypeError):
        lean()
    with pytest.raises(TypeError, match="unexpected"):
        lean(x, gat=gate)


def test_what_changes_after_lean_runs_the_class_s_own():
    torch.manual_seed(0)
    mlp = LlamaMLP(LLAMA)
    plain = copy.deepcopy(mlp)
    sft.lean(mlp)
    x = torch.randn(3, 8)
    seen = []
    mlp.act_fn.register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(mlp(x), plain(x)) and seen == [1]
    mlp.act_fn = plain.act_fn = nn.Tanh()
    assert torch.equal(mlp(x), plain(x))


def test_weights_of_no_numbers_are_enough():
    with torch.device("meta"):
        model = nn.Sequential(WideNorm(8), LlamaMLP(LLAMA), ResNetConvLayer(8, 8))
        report = sft.lean(model)
    assert {"0", "1", "2"} <= set(report.changed) and not report.left


def test_under_autocast_and_another_default_dtype(device):
    model = nn.Sequential(WideNorm(8), LlamaMLP(LLAMA), Swish())
    with torch.autocast(device.type, torch.bfloat16), torch.no_grad():
        assert not sft.lean(model).left


def test_a_weight_that_is_elsewhere_between_forwards():
    """As under DeepSpeed's ZeRO-3."""
    norm = WideNorm()
    whole, norm.weight.data = norm.weight.data, torch.empty(0)
    assert sft.lean(norm).changed == [""]
    norm.weight.data = whole
    x = torch.randn(3, 8)
    assert torch.allclose(norm(x), type(norm).forward(norm, x), atol=1e-6)


def test_a_weight_that_has_no_shape_yet():
    norm = WideNorm()
    norm.weight = nn.UninitializedParameter()
    mlp = LlamaMLP(LLAMA)
    mlp.gate_proj = nn.LazyLinear(12)
    report = sft.lean(nn.Sequential(norm, mlp))
    assert "0" in report.left and "1" in report.changed


class Cubed(nn.Module):
    def forward(self, x):
        return x * x * x


class Other(nn.Module):
    def forward(self, x):
        return 3 * x * x


def test_a_lean_module_is_one_function():
    """By class, or by what a module does: whoever adds one touches one file."""
    from sparse_ft.lean_modules import activations, register

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, grad):
            return grad * 3 * ctx.saved_tensors[0] ** 2

    def cube_forward(module, x):
        return Cube.apply(x)

    known = list(register.BY_PROBE)
    try:
        register.lean_if(activations.activation_cases)(cube_forward)
        register.lean_for(nn.Hardswish)(cube_forward)
        report = sft.lean(nn.Sequential(Cubed(), Other(), nn.Hardswish()))
    finally:
        register.BY_PROBE[:] = known
        del register.BY_CLASS[nn.Hardswish]
    assert report.changed == ["0", "2"] and report.left == ["1"]


def test_like_modules_are_tried_once(monkeypatch):
    from sparse_ft.lean_modules import recognise

    tried, probe = [], recognise._probed
    monkeypatch.setattr(
        recognise, "_probed", lambda module: tried.append(type(module)) or probe(module)
    )
    layers = [nn.Sequential(PlainNorm(), PlainNorm(8, 1e-5), LlamaMLP(LLAMA)) for _ in range(200)]
    report = sft.lean(nn.Sequential(*layers))
    assert len(report.changed) == 200 * 7 and not report.left
    assert len(tried) == 4  # the model's own class of container, two norms, an MLP
