"""Small networks made of layers that a line of text names.

Any layer may be left out and the rest still fits together.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .models import MODELS, VOCABULARY
from .sequences import CrossAttention, Decoder, Encoder, Recurrent, SelfAttention, as_sequences


class Layer(NamedTuple):
    """One layer of a network. name: what its parameters begin with, whatever other layers there
    are.
    """

    name: str
    kind: str
    options: dict = {}


class Network(NamedTuple):
    """shape: of one input, without its batch. data: "features", "tokens", "sequence", "images" or a
    model of transformers.
    """

    data: str
    batch: int
    shape: tuple
    layers: tuple = ()


ACTIVATIONS = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "leaky": nn.LeakyReLU,
    "hardswish": nn.Hardswish,
    "softplus": nn.Softplus,
    "mish": nn.Mish,
    "elu": nn.ELU,
}
IN_PLACE = "relu", "silu", "leaky", "hardswish", "elu", "mish"
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


class Chain(nn.ModuleDict):
    """Its layers one after the other, each under `checkpointing` if that is "reentrant"
    or "plain".
    """

    checkpointing = None

    def forward(self, x):
        for layer in self.values():
            if (
                self.checkpointing is None
                or not torch.is_grad_enabled()
                or not x.is_floating_point()
            ):
                x = layer(x)
                continue
            if self.checkpointing == "reentrant" and not x.requires_grad:
                x = x.detach().requires_grad_()
            x = checkpoint(layer, x, use_reentrant=self.checkpointing == "reentrant")
        return x


class Gated(nn.Module):
    def __init__(self, width, hidden, bias, activation):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias)
        self.up_proj = nn.Linear(width, hidden, bias)
        self.down_proj = nn.Linear(hidden, width, bias)
        self.act_fn = ACTIVATIONS[activation]()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Residual(nn.Module):
    def __init__(self, width, hidden, bias, activation, norm):
        super().__init__()
        self.norm = norm_of(norm, width)
        self.up = nn.Linear(width, hidden, bias)
        self.activation = ACTIVATIONS[activation]()
        self.down = nn.Linear(hidden, width, bias)

    def forward(self, x):
        return x + self.down(self.activation(self.up(self.norm(x))))


class Twice(nn.Module):
    """One linear layer that is used twice, and once more by another name."""

    def __init__(self, width, bias):
        super().__init__()
        self.shared = nn.Linear(width, width, bias)
        self.again = self.shared

    def forward(self, x):
        return self.again(torch.tanh(self.shared(torch.tanh(self.shared(x)))))


class Parallel(nn.Module):
    """Two layers that read the same input; the second adds to the first one's output in place."""

    def __init__(self, width, out, bias):
        super().__init__()
        self.left = nn.Linear(width, out, bias)
        self.right = nn.Linear(width, out, bias)

    def forward(self, x):
        y = self.left(x)
        y += self.right(x)
        return y


class Idle(nn.Module):
    """Has a layer that takes no part in the forward."""

    def __init__(self, width):
        super().__init__()
        self.used = nn.Linear(width, width)
        self.unused = nn.Linear(width, width)

    def forward(self, x):
        return self.used(x)


class Reads(nn.Module):
    """Reads the weight of a layer that it never calls."""

    def __init__(self, width, out, bias):
        super().__init__()
        self.linear = nn.Linear(width, out, bias)

    def forward(self, x):
        return F.linear(x, self.linear.weight, self.linear.bias)


class CalledAndRead(nn.Module):
    """Calls a layer and reads its weight, too, as tied heads do."""

    def __init__(self, width, bias):
        super().__init__()
        self.linear = nn.Linear(width, width + 1, bias)

    def forward(self, x):
        return torch.tanh(self.linear(x)) @ self.linear.weight


class Direct(nn.Module):
    """Calls a layer's forward without the layer's hooks."""

    def __init__(self, width, out, bias):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, out, bias)

    def forward(self, x):
        return self.linear.forward(self.norm.forward(x))


class Bilinear(nn.Module):
    def __init__(self, width, out, bias):
        super().__init__()
        self.bilinear = nn.Bilinear(width, width, out, bias)

    def forward(self, x):
        return self.bilinear(x, torch.tanh(x))


class OverTokens(nn.Module):
    """A convolution over the tokens of [batch, tokens, width]."""

    def __init__(self, width, out, **options):
        super().__init__()
        self.conv = nn.Conv1d(width, out, **options)

    def forward(self, x):
        sequence = as_sequences(x)
        out = self.conv(sequence.transpose(1, 2)).transpose(1, 2)
        return (
            out.reshape(*x.shape[:-1], out.shape[-1])
            if out.shape[:2] == sequence.shape[:2]
            else out
        )


class Pooled(nn.Module):
    """The mean of everything behind the channels."""

    def forward(self, x):
        return x.flatten(2).mean(2)


def norm_of(kind, width):
    return {
        "layer": lambda: nn.LayerNorm(width),
        "layer without bias": lambda: nn.LayerNorm(width, bias=False),
        "rms": lambda: nn.RMSNorm(width, eps=1e-6),
    }[kind]()


FEATURE_LAYERS = {  # kind -> (width, options) -> (module, its output's width)
    "linear": lambda d, o: (nn.Linear(d, o["out"], o["bias"]), o["out"]),
    "activation": lambda d, o: (
        ACTIVATIONS[o["name"]](**({"inplace": True} if o["inplace"] else {})),
        d,
    ),
    "norm": lambda d, o: (norm_of(o["name"], d), d),
    "gated": lambda d, o: (Gated(d, o["hidden"], o["bias"], o["activation"]), d),
    "residual": lambda d, o: (Residual(d, **o), d),
    "attention": lambda d, o: (SelfAttention(d, **o), d),
    "cross attention": lambda d, o: (CrossAttention(d, **o), d),
    "encoder": lambda d, o: (Encoder(d, **o), d),
    "decoder": lambda d, o: (Decoder(d, **o), d),
    "recurrent": lambda d, o: (Recurrent(d, **o), recurrent_width(**o)),
    "twice": lambda d, o: (Twice(d, o["bias"]), d),
    "parallel": lambda d, o: (Parallel(d, o["out"], o["bias"]), o["out"]),
    "idle": lambda d, o: (Idle(d), d),
    "bilinear": lambda d, o: (Bilinear(d, o["out"], o["bias"]), o["out"]),
    "over tokens": lambda d, o: (OverTokens(d, **o), o["out"]),
    "prelu": lambda d, o: (nn.PReLU(), d),
    "dropout": lambda d, o: (nn.Dropout(**o), d),
    "reads": lambda d, o: (Reads(d, o["out"], o["bias"]), o["out"]),
    "called and read": lambda d, o: (CalledAndRead(d, o["bias"]), d),
    "direct": lambda d, o: (Direct(d, o["out"], o["bias"]), o["out"]),
    "weight norm": lambda d, o: (
        nn.utils.parametrizations.weight_norm(nn.Linear(d, o["out"], o["bias"])),
        o["out"],
    ),
}


def recurrent_width(hidden_size, bidirectional=False, proj_size=0, **_):
    return (proj_size or hidden_size) * (2 if bidirectional else 1)


def image_layer(kind, dims, channels, options):
    """(module, its output's channels) of a layer on [batch, channels, *dims]."""
    if kind == "conv":
        return CONVOLUTIONS[dims](channels, **options), options["out_channels"]
    if kind == "transposed":
        return TRANSPOSED[dims](channels, **options), options["out_channels"]
    if kind == "batch norm":
        return BATCH_NORMS[dims](channels, **options), channels
    if kind == "group norm":
        return nn.GroupNorm(1, channels), channels
    if kind == "instance norm":
        return (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 1](
            channels, affine=True
        ), channels
    if kind == "max pool":
        return MAX_POOLS[dims](2), channels
    if kind == "average pool":
        return AVERAGE_POOLS[dims](2), channels
    if kind == "activation":
        return FEATURE_LAYERS["activation"](channels, options)
    raise KeyError(kind)


def build(network, seed, dtype):
    """The module of a Network in training mode, with random weights."""
    torch.manual_seed(seed)
    if network.data in MODELS:
        model = MODELS[network.data](dtype)
        return model.to(dtype).train()
    chain = Chain()
    width, pooled = (
        network.shape[0] if network.data == "images" else network.shape[-1],
        network.data != "images",
    )
    for name, kind, options in network.layers:
        if kind == "embedding":
            chain[name], width = (
                nn.Embedding(VOCABULARY, options["width"], padding_idx=options["padding_idx"]),
                options["width"],
            )
        elif kind == "bag":
            chain[name], width = nn.EmbeddingBag(VOCABULARY, **options), options["embedding_dim"]
        elif kind == "pool":
            chain[name], pooled = Pooled(), True
        elif pooled:
            chain[name], width = FEATURE_LAYERS[kind](width, options)
        else:
            chain[name], width = image_layer(kind, len(network.shape) - 1, width, options)
    return chain.to(dtype).train()


def checkpoint_blocks(model, how):
    """Gradient checkpointing "reentrant" or "plain", as the model offers it; None: without."""
    if isinstance(model, Chain):
        model.checkpointing = how
    elif how is not None:
        model.model.gradient_checkpointing_enable({"use_reentrant": how == "reentrant"})
