"""A case of the differential test.

Everything about one training run that a line of text can say, and how one is drawn.
"""

import random
from typing import NamedTuple

import torch

import sparse_ft as sft

from . import networks
from .drawn_networks import draw_network
from .events import EVENTS
from .models import MODELS, VOCABULARY
from .networks import Network
from .optimizers import OPTIMIZERS


class Choice(NamedTuple):
    """A selection on a matrix of any shape.

    kind: "rows", "columns", "blocks", "entries" or "all". share: 0 to 1, at least one row (column,
    …). block: its size.
    """

    kind: str
    share: float = 0.5
    seed: int = 0
    block: tuple = (2, 3)

    def on(self, shape):
        """The Selection (or "all") on a matrix of `shape`."""
        if self.kind == "all":
            return "all"
        rows, columns = shape
        height, width = min(self.block[0], rows), min(self.block[1], columns)
        down, across = -(-rows // height), -(-columns // width)
        count = {
            "rows": rows,
            "columns": columns,
            "entries": rows * columns,
            "blocks": down * across,
        }[self.kind]
        number = max(1, round(count * self.share))
        flat = torch.tensor(sorted(random.Random(self.seed).sample(range(count), number)))
        if self.kind == "blocks":
            return sft.Blocks(torch.stack((flat // across, flat % across), 1), (height, width))
        return {"rows": sft.Rows, "columns": sft.Columns, "entries": sft.Entries}[self.kind](flat)


class Event(NamedTuple):
    """What happens besides training, before a step or (within) between its forward and its
    backward.

    number: of a parameter or a way, where there are several.
    """

    kind: str
    step: int
    number: int = 0
    within: bool = False


class Case(NamedTuple):
    """One run. plan: {parameter name: Choice}.

    The rest says how it is trained; every default is the plainest.
    """

    network: Network
    plan: dict
    seed: int = 0
    dtype: str = "fp64"
    born: str | None = (
        None  # the dtype of the model when it is converted, if not that in which it trains
    )
    values_dtype: str | None = None
    lean: str | None = None  # "before", "with" or "after" convert; "loss": before, with the loss
    autocast: bool = False
    checkpointing: str | None = None
    accumulate: int = 1
    optimizer: str = "SGD"
    options: dict = {}
    backward: str = (
        "plain"  # "of two" forwards, "retained" and gone through again, "by autograd.grad"
    )
    context: str | None = None  # see runs.CONTEXTS
    clip: float | None = None
    scaler: bool = False
    closure: bool = False
    split: bool = False  # two optimisers, the second for every other parameter
    schedule: bool = False
    set_to_none: bool = True
    layout: str = "contiguous"
    input_grad: bool = False
    training: bool = True
    steps: int = 3
    origin: bool = False  # whether convert keeps it
    events: tuple = ()


def draw(seed):
    """The case of a seed."""
    rng = random.Random(seed)
    network = draw_network(rng)
    while not names_and_shapes(network):
        network = draw_network(rng)
    dtype = rng.choice(("fp64", "fp64", "fp64", "fp32", "fp32", "bf16"))
    plan = draw_plan(rng, network)
    if network.data.endswith(" loss") and dtype == "fp64":
        dtype = "fp32"  # transformers takes its loss in fp32
    steps = rng.choice((2, 3, 4))
    case = Case(network, plan, seed=rng.randrange(1000), dtype=dtype, steps=steps)
    if dtype == "bf16":
        case = case._replace(values_dtype=rng.choice((None, None, "bf16", "fp64")))
    elif dtype == "fp32":
        case = case._replace(values_dtype=rng.choice((None, None, None, "fp32", "fp64")))
    if dtype != "fp32" and case.values_dtype is None and network.data not in MODELS:
        case = case._replace(born=rng.choice((None, None, None, "fp32")))
    case = case._replace(
        lean=rng.choice((None, None, "before", "with", "after")),
        autocast=dtype != "fp64" and rng.random() < 0.3,
        checkpointing=rng.choice((None, None, "reentrant", "plain")),
        accumulate=rng.choice((1, 1, 2)),
        set_to_none=rng.random() < 0.75,
        schedule=rng.random() < 0.3,
        input_grad=network.data in ("features", "sequence", "images") and rng.random() < 0.4,
        training=rng.random() < 0.85,
        context=rng.choice((None, None, None, "anomaly", "save_on_cpu", "copies saved")),
        backward=rng.choice(("plain", "plain", "plain", "of two", "retained", "by autograd.grad")),
        layout=rng.choice(
            (
                "contiguous",
                "contiguous",
                "transposed",
                "sliced",
                "expanded",
                *channels_last(network),
            )
        ),
    )
    if network.data.endswith(" loss") and case.lean is not None:
        case = case._replace(lean="loss")
    case = draw_optimizer(rng, case)
    case = case._replace(origin=rng.random() < 0.4)
    return case._replace(events=draw_events(rng, case))


def channels_last(network):
    """Not with a GroupNorm: torch 2.13 crashes in its backward where the bias trains and the weight
    does not.
    """
    return () if any(layer.kind == "group norm" for layer in network.layers) else ("channels last",)


def names_and_shapes(network):
    """{name: matrix shape} of every parameter that may be selected: of those that are
    tied, none.
    """
    model = networks.build(network, 0, torch.float32)
    every = list(model.named_parameters(remove_duplicate=False))
    owners = {}
    for path, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(f"{path}.{attribute}")
    free = [name for name, p in every if len(owners[id(p)]) == 1]
    first = {id(p): name for name, p in reversed(every)}
    free = [name for name in free if model.get_parameter(name).numel()]
    return {
        name: sft.matrix_shape(model, name)
        for name in free
        if first[id(model.get_parameter(name))] == name
    }


def draw_plan(rng, network):
    shapes = names_and_shapes(network)
    share = rng.choice((0.2, 0.5, 1.0))
    names = [name for name in shapes if rng.random() < share] or [rng.choice(list(shapes))]
    return {name: draw_choice(rng, name, shapes[name]) for name in names}


def draw_choice(rng, name, shape):
    kind = rng.choice(
        ("rows", "columns", "blocks", "entries", "rows", "columns", "blocks", "entries", "all")
    )
    if shape[0] == VOCABULARY and rng.random() < 0.5:
        kind = "rows"  # an embedding's own way
    return Choice(
        kind,
        share=rng.choice((0.0, 0.1, 0.3, 0.5, 1.0)),
        seed=rng.randrange(1000),
        block=(rng.randrange(1, 4), rng.randrange(1, 5)),
    )


def draw_optimizer(rng, case):
    narrow = case.values_dtype == "bf16"  # what keeps more than bf16 holds
    names = [
        name
        for name in OPTIMIZERS
        if narrow or not name.endswith(("correction", "stochastic_rounding"))
    ]
    if case.dtype == "bf16":  # torch 2.13's leaves whole vectors of bf16 parameters as they are
        names.remove("SGD fused")
    if case.dtype == "fp64" or case.values_dtype == "fp64":
        names.remove("SelectiveAdamW optim_bits=8")
    likely = (
        ["SelectiveAdamW correction", "SelectiveAdamW stochastic_rounding"]
        if narrow
        else ["SelectiveAdamW"]
    )
    name = rng.choice(names + likely * 6)
    decay = rng.choice((0.0, 0.1, 0.1))
    options = {"weight_decay": decay} if OPTIMIZERS[name].decays else {}
    if OPTIMIZERS[name].family.startswith("adamw") and rng.random() < 0.2:
        options["betas"] = rng.choice(((0.0, 0.99), (0.5, 0.9)))
    case = case._replace(optimizer=name, options=options)
    if OPTIMIZERS[name].in_backward:
        # Refused by name.
        backward = rng.choice(("plain", "of two")) if case.checkpointing != "reentrant" else "plain"
        return case._replace(accumulate=1, set_to_none=True, backward=backward)
    way = rng.choice(("closure", "scaler", "split", *[None] * 7))  # one of them at most
    if way == "scaler" and not OPTIMIZERS[name].scales or way == "split" and len(case.plan) < 2:
        way = None
    return case._replace(
        closure=way == "closure",
        clip=rng.choice((None, None, None, 0.1)),
        scaler=way == "scaler",
        split=way == "split",
    )


def draw_events(rng, case):
    events = []
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        kinds = [kind for kind in EVENTS if EVENTS[kind].legal(case)]
        kind = rng.choice(kinds + ["generate"] * (5 if "generate" in kinds else 0))
        within = EVENTS[kind].within and rng.random() < 0.5
        events.append(Event(kind, rng.randrange(1, case.steps), rng.randrange(6), within))
    return tuple(sorted(events, key=lambda e: e.step))
