"""Modules that look like known ones and do something else are left and named."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.own_modules import LLAMA, PHI3, PlainNorm, Swish, WideNorm
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.phi3.modeling_phi3 import Phi3MLP
from transformers.models.resnet.modeling_resnet import ResNetConvLayer

import sparse_ft as sft
from sparse_ft.lean_modules.attach import lean_forward_of

pytestmark = pytest.mark.usefixtures("made_on_device")


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
