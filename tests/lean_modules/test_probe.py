"""Modules are recognised by what they do: known forms are lean, all others left and named."""

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.phi3.modeling_phi3 import Phi3MLP
from transformers.models.resnet.modeling_resnet import ResNetConvLayer

import sparse_ft as sft
from sparse_ft.lean_modules.attach import lean_forward_of

LLAMA = transformers.LlamaConfig(hidden_size=8, intermediate_size=12, num_attention_heads=2)
PHI3 = transformers.Phi3Config(
    hidden_size=8, intermediate_size=12, num_attention_heads=2, pad_token_id=0
)


class PlainNorm(nn.Module):
    """As anyone writes it."""

    def __init__(self, size=8, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.linspace(0.5, 1.5, size)), eps

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class WideNorm(PlainNorm):
    def forward(self, x):
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).type_as(
            x
        ) * self.weight


class TorchsNorm(PlainNorm):
    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class SometimesGated(WideNorm):
    def forward(self, x, gate=None):
        output = super().forward(x)
        return output if gate is None else output * F.silu(gate)


class TimmsLayerNorm(nn.LayerNorm):
    """A class of its own that does what torch's does."""

    def __init__(self):
        super().__init__(8)

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class BareNorm(nn.Module):
    eps = 1e-6

    def __init__(self):
        super().__init__()
        self.eps = 1e-6

    def forward(self, x):
        return (
            x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        ).type_as(x)


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class OwnMLP(nn.Module):
    """Llama's, with more than it needs."""

    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(8, 12), nn.Linear(8, 12)
        self.down_proj, self.act_fn = nn.Linear(12, 8), Swish()

    def forward(self, hidden):
        up = self.up_proj(hidden)
        return self.down_proj(up * self.act_fn(self.gate_proj(hidden)))


class MetasMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 12)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class SiluMLP(OwnMLP):
    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


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


class BiasedInHalf(WideNorm):
    def forward(self, x):
        output = super().forward(x)
        return output + 1e-3 if x.dtype == torch.bfloat16 else output


class EpsOutside(PlainNorm):
    def forward(self, x):
        return self.weight * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.eps)


class EpsOfItsOwn(PlainNorm):
    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class WithDropout(LlamaRMSNorm):
    def forward(self, hidden_states):
        return F.dropout(super().forward(hidden_states), 0.1, self.training)


class DropoutWithGradients(LlamaRMSNorm):
    def forward(self, hidden_states):
        return F.dropout(super().forward(hidden_states), 0.1, torch.is_grad_enabled())


class OtherInTraining(LlamaRMSNorm):
    def forward(self, hidden_states):
        output = super().forward(hidden_states)
        return output if self.training else output * 1.01


class NeedsMore(LlamaRMSNorm):
    def forward(self, hidden_states, scale):
        return super().forward(hidden_states) * scale


class StopsGradients(PlainNorm):
    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps).detach())


class Counts(WideNorm):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Records(WideNorm):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.shape)
        return super().forward(x)


class WithBuffer(WideNorm):
    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.zeros(8))


class Biased(WideNorm):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(8))


class OfTheLargest(PlainNorm):
    def forward(self, x):
        large = x.abs().max() > 1
        return super().forward(x) if large else x


class ReturnsTwo(WideNorm):
    def forward(self, x):
        return super().forward(x), x


class InPlace(PlainNorm):
    def forward(self, x):
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return x.mul_(scale) * self.weight


class SwishInTraining(SiLUActivation):
    def forward(self, input):
        return F.dropout(super().forward(input), 0.1, self.training)


class SwishInPlace(SiLUActivation):
    def forward(self, input):
        return F.silu(input, inplace=True)


class HalfSwish(Swish):
    def forward(self, x):
        return super().forward(x) + 0.01 if x.dtype == torch.bfloat16 else super().forward(x)


class UpFirst(Phi3MLP):
    def forward(self, hidden_states):
        up, gate = self.gate_up_proj(hidden_states).chunk(2, dim=-1)
        return self.down_proj(up * self.activation_fn(gate))


class GateTwice(LlamaMLP):
    def forward(self, x):
        return self.down_proj(
            self.act_fn(self.gate_proj(x)) * self.up_proj(x) + 0 * self.gate_proj(x)
        )


class ReadsWeight(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * F.linear(x, self.up_proj.weight))


class Clamped(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)).clamp(max=1) * self.up_proj(x))


class Scaled(LlamaMLP):
    def __init__(self, config):
        super().__init__(config)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return super().forward(x) * self.scale


class Skips(ResNetConvLayer):
    def forward(self, input):
        return super().forward(input) + self.convolution(input)


class NormFirst(ResNetConvLayer):
    def forward(self, input):
        return self.convolution(self.activation(self.normalization(input)))


def swapped():
    mlp = LlamaMLP(LLAMA)
    mlp.act_fn = nn.Tanh()
    return mlp


def hooked():
    mlp = LlamaMLP(LLAMA)
    mlp.act_fn.register_forward_hook(lambda *_: None)
    return mlp


def patched():
    norm = WideNorm()
    norm.forward = lambda x: 2 * x
    return norm


def wrapped():
    norm = WideNorm()
    norm.forward = norm.forward
    return norm


def with_a_method():
    norm = WideNorm()
    norm.normed = norm.forward
    return norm


ADVERSARIES = {
    **{
        kind.__name__: kind
        for kind in (BiasedInHalf, EpsOutside, EpsOfItsOwn, StopsGradients, Counts, Records)
    },
    **{kind.__name__: kind for kind in (WithBuffer, Biased, OfTheLargest, ReturnsTwo, InPlace)},
    **{
        kind.__name__: lambda kind=kind: kind(8)
        for kind in (WithDropout, DropoutWithGradients, OtherInTraining, NeedsMore)
    },
    **{kind.__name__: kind for kind in (SwishInTraining, SwishInPlace, HalfSwish)},
    **{
        kind.__name__: lambda kind=kind: kind(LLAMA)
        for kind in (GateTwice, ReadsWeight, Clamped, Scaled)
    },
    **{kind.__name__: lambda kind=kind: kind(8, 8) for kind in (Skips, NormFirst)},
    "UpFirst": lambda: UpFirst(PHI3),
    "swapped": swapped,
    "hooked": hooked,
    "patched": patched,
    "wrapped": wrapped,
    "with a method": with_a_method,
}


@pytest.mark.parametrize("name", ADVERSARIES)
def test_what_does_something_else_is_left_and_named(name):
    torch.manual_seed(0)
    module = ADVERSARIES[name]()
    report = sft.lean(nn.Sequential(module))
    assert "0" in report.left, report
    assert f"1 × {type(module).__name__}: " in report.brief()
    assert lean_forward_of(module) is None and (
        name in ("patched", "wrapped") or "forward" not in module.__dict__
    )


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


def test_a_probe_leaves_nothing_behind():
    """No number drawn, no hook called, no gradient, no attribute, whatever mode is on."""
    seen = []
    model = nn.Sequential(
        WithDropout(8), WideNorm(8), Counts(8), LlamaMLP(LLAMA), UpFirst(PHI3), Skips(8, 8)
    )
    model[1].register_forward_hook(lambda *_: seen.append(1))
    model[3].down_proj.register_forward_hook(lambda *_: seen.append(1))
    before = copy.deepcopy(model.state_dict())
    handles = [register(lambda *_: seen.append(1)) for register in hooks_of_every_module()]
    state = torch.get_rng_state()
    try:
        with torch.inference_mode():
            report = sft.lean(model)
    finally:
        for handle in handles:
            handle.remove()
    assert (
        {"1", "3"} <= set(report.changed) and not seen and torch.equal(torch.get_rng_state(), state)
    )
    assert model[2].calls == 0 and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def hooks_of_every_module():
    return register_module_forward_hook, register_module_forward_pre_hook


def test_weights_of_no_numbers_are_enough():
    with torch.device("meta"):
        model = nn.Sequential(WideNorm(8), LlamaMLP(LLAMA), ResNetConvLayer(8, 8))
        report = sft.lean(model)
    assert {"0", "1", "2"} <= set(report.changed) and not report.left


def test_under_autocast_and_another_default_dtype():
    model = nn.Sequential(WideNorm(8), LlamaMLP(LLAMA), Swish())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
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
