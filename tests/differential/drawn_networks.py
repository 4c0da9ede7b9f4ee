"""Networks of the differential test, drawn at random."""

from . import networks
from .models import MODELS
from .networks import Layer, Network
from .sequences import RECURRENT


def draw_network(rng):
    data = rng.choice(
        (
            "features",
            "features",
            "sequence",
            "sequence",
            "sequence",
            "tokens",
            "images",
            "images",
            "model",
        )
    )
    if data == "model":
        return Network(rng.choice(tuple(MODELS)), rng.choice((1, 2)), (rng.choice((1, 4, 5)),))
    batch = rng.choice((1, 2, 3))
    if data == "images":
        return draw_convolutions(rng, batch)
    kinds, layers = list(FEATURES), []
    if data == "features":
        shape = (rng.randrange(2, 8),)
        kinds = [
            kind for kind in kinds if kind not in ("over tokens", "encoder", "decoder", "recurrent")
        ]
        batch = rng.choice((None, 0, 1, 2, 5, 9))  # None: one vector without a batch
    elif data == "sequence":
        shape = rng.choice(((4,), (5,), (2, 3)))[-rng.choice((1, 1, 2)) :] + (rng.randrange(2, 8),)
    else:
        shape = (rng.randrange(1, 6),)
        if rng.random() < 0.3:
            mode = rng.choice(("sum", "mean", "max"))
            bag = {
                "embedding_dim": rng.randrange(2, 7),
                "mode": mode,
                "padding_idx": rng.choice((None, 0, 3)),
            }
            layers = [Layer("a", "bag", bag)]
        else:
            layers = [
                Layer(
                    "a",
                    "embedding",
                    {"width": rng.randrange(2, 7), "padding_idx": rng.choice((None, 0, 3))},
                )
            ]
    for number in range(rng.randrange(1, 4)):
        kind = rng.choice(kinds)
        after = layers[-1].kind if layers else None
        options = draw_activation(rng, after) if kind == "activation" else FEATURES[kind](rng)
        layers.append(Layer("bcdef"[number], kind, options))
    if not any(layer.kind not in ("activation", "prelu") for layer in layers):
        layers.append(Layer("g", "linear", draw_linear(rng)))
    return Network(data, batch, shape, tuple(layers))


def draw_activation(rng, after=None):
    """In place only where the layer before does not need its own output."""
    name = rng.choice(tuple(networks.ACTIVATIONS))
    free = after in (
        "linear",
        "conv",
        "transposed",
        "batch norm",
        "norm",
        "over tokens",
        "reads",
        "direct",
    )
    return {"name": name, "inplace": free and name in networks.IN_PLACE and rng.random() < 0.5}


def draw_attention(rng):
    return {
        "mask": rng.choice((None, None, "causal", "padded")),
        "bias": rng.random() < 0.7,
        "batch_first": rng.random() < 0.5,
        "add_bias_kv": rng.random() < 0.2,
        "dropout": rng.choice((0.0, 0.0, 0.3)),
    }


def draw_block(rng):
    return {
        "dropout": rng.choice((0.0, 0.0, 0.3)),
        "activation": rng.choice(("relu", "gelu")),
        "norm_first": rng.random() < 0.5,
        "batch_first": rng.random() < 0.6,
        "bias": rng.random() < 0.7,
    }


def draw_recurrent(rng):
    kind, hidden = rng.choice(tuple(RECURRENT)), rng.randrange(2, 5)
    projected = {"proj_size": hidden - 1} if kind == "lstm" and rng.random() < 0.3 else {}
    return {
        **projected,
        "kind": kind,
        "hidden_size": hidden,
        "num_layers": rng.choice((1, 1, 2)),
        "bidirectional": rng.random() < 0.4,
        "bias": rng.random() < 0.7,
        "batch_first": rng.random() < 0.5,
    }


def draw_linear(rng):
    return {"out": rng.randrange(1, 9), "bias": rng.random() < 0.7}


FEATURES = {
    "linear": draw_linear,
    "activation": None,  # see draw_activation
    "norm": lambda rng: {"name": rng.choice(("layer", "layer without bias", "rms"))},
    "gated": lambda rng: {
        "hidden": rng.randrange(2, 9),
        "bias": rng.random() < 0.5,
        "activation": rng.choice(("silu", "gelu", "relu", "tanh")),
    },
    "residual": lambda rng: {
        "hidden": rng.randrange(2, 9),
        "bias": rng.random() < 0.7,
        "activation": rng.choice(("relu", "gelu", "silu")),
        "norm": rng.choice(("layer", "rms")),
    },
    "attention": draw_attention,
    "cross attention": lambda rng: {"bias": rng.random() < 0.7, "add_bias_kv": rng.random() < 0.2},
    "encoder": lambda rng: {
        **draw_block(rng),
        "mask": rng.choice((None, None, "causal", "padded")),
    },
    "decoder": draw_block,
    "recurrent": draw_recurrent,
    "twice": lambda rng: {"bias": rng.random() < 0.7},
    "parallel": draw_linear,
    "idle": lambda rng: {},
    "bilinear": lambda rng: {"out": rng.randrange(1, 4), "bias": rng.random() < 0.7},
    "over tokens": lambda rng: {
        "out": rng.randrange(1, 6),
        "kernel_size": rng.choice((1, 3)),
        "padding": "same",
    },
    "prelu": lambda rng: {},
    "dropout": lambda rng: {"p": rng.choice((0.3, 0.5))},
    "reads": draw_linear,
    "called and read": lambda rng: {"bias": rng.random() < 0.7},
    "direct": draw_linear,
    "weight norm": draw_linear,
}


def draw_convolutions(rng, batch):
    dims = rng.choice((1, 2, 2, 2, 3))
    shape = (rng.choice((1, 2, 3)), *(rng.choice((5, 6)) for _ in range(dims)))
    layers = []
    for number in range(rng.choice((1, 2))):
        out = rng.choice((2, 4))
        if rng.random() < 0.15:
            layers.append(
                Layer(
                    f"b{number}",
                    "transposed",
                    {"out_channels": out, "kernel_size": 2, "bias": rng.random() < 0.7},
                )
            )
        else:
            options = {
                "out_channels": out,
                "kernel_size": rng.choice((1, 2, 3)),
                "stride": rng.choice((1, 1, 2)),
                "padding": rng.choice((0, 1, 1)),
                "bias": rng.random() < 0.7,
                "padding_mode": rng.choice(("zeros", "zeros", "zeros", "circular", "replicate")),
            }
            if number and rng.random() < 0.4:
                options["groups"] = 2
            layers.append(Layer(f"b{number}", "conv", options))
        if rng.random() < 0.6:
            norm = rng.choice(("batch norm", "batch norm", "group norm", "instance norm"))
            options = {} if norm != "batch norm" else {"track_running_stats": rng.random() < 0.8}
            layers.append(Layer(f"c{number}", norm, options))
        if rng.random() < 0.8:
            layers.append(Layer(f"d{number}", "activation", draw_activation(rng, layers[-1].kind)))
        if number == 0 and rng.random() < 0.4:
            layers.append(Layer(f"e{number}", rng.choice(("max pool", "average pool")), {}))
    layers.append(Layer("p", "pool"))
    if rng.random() < 0.7:
        layers.append(Layer("q", "linear", draw_linear(rng)))
    return Network("images", batch + 1, shape, tuple(layers))
