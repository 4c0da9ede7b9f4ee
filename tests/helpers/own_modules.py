"""Norms, activations and gated MLPs as users write them."""

import torch
import torch.nn.functional as F
import transformers
from torch import nn

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
