"""Every class of torch.nn that has parameters trains under a selection as it does dense, or is
refused by name.
"""

import copy
import inspect

import pytest
import torch
from helpers import dense_twin
from torch import nn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")

VECTORS, SEQUENCES = (4, 6), (3, 5, 6)
# class -> [(arguments, options, shapes of the inputs; a shape of integers is written as text)]
MADE = {
    "Linear": [
        ((6, 5), {}, [VECTORS]),
        ((6, 5), {"bias": False}, [SEQUENCES]),
        ((6, 1), {}, [(6,)]),
    ],
    "Bilinear": [((6, 6, 3), {}, [VECTORS, VECTORS])],
    "Conv1d": [
        ((4, 6, 3), {}, [(2, 4, 9)]),
        ((4, 6, 3), {"groups": 2, "bias": False, "stride": 2}, [(2, 4, 9)]),
    ],
    "Conv2d": [
        ((2, 3, 3), {"padding": 1}, [(2, 2, 5, 6)]),
        ((2, 4, 2), {"padding_mode": "circular", "padding": 1}, [(2, 5, 6)]),
    ],
    "Conv3d": [((2, 3, 2), {"dilation": 2}, [(1, 2, 4, 4, 5)])],
    "ConvTranspose1d": [((4, 6, 3), {"groups": 2}, [(2, 4, 9)])],
    "ConvTranspose2d": [((2, 3, 3), {"stride": 2, "output_padding": 1}, [(2, 2, 5, 6)])],
    "ConvTranspose3d": [((2, 3, 2), {"bias": False}, [(1, 2, 3, 3, 3)])],
    "BatchNorm1d": [((6,), {}, [VECTORS]), ((5,), {"track_running_stats": False}, [SEQUENCES])],
    "BatchNorm2d": [((3,), {}, [(2, 3, 4, 5)])],
    "BatchNorm3d": [((3,), {"momentum": None}, [(2, 3, 2, 2, 2)])],
    "SyncBatchNorm": [((3,), {}, [(2, 3, 4, 5)])],
    "InstanceNorm1d": [((5,), {"affine": True}, [SEQUENCES])],
    "InstanceNorm2d": [((3,), {"affine": True, "track_running_stats": True}, [(2, 3, 4, 5)])],
    "InstanceNorm3d": [((3,), {"affine": True}, [(2, 3, 2, 2, 2)])],
    "GroupNorm": [((2, 6), {}, [(3, 6, 4)])],
    "LayerNorm": [((6,), {}, [SEQUENCES]), (((5, 6),), {"bias": False}, [SEQUENCES])],
    "RMSNorm": [((6,), {}, [SEQUENCES])],
    "PReLU": [((), {}, [SEQUENCES]), ((5,), {}, [SEQUENCES])],
    "Embedding": [((9, 4), {"padding_idx": 3}, ["3 5"])],
    "EmbeddingBag": [((9, 4), {"mode": mode}, ["3 5"]) for mode in ("mean", "sum", "max")],
    "RNN": [
        ((6, 4), {"num_layers": 2}, [SEQUENCES]),
        ((6, 4), {"nonlinearity": "relu", "bias": False}, [(5, 6)]),
    ],
    "LSTM": [
        ((6, 4), {"bidirectional": True}, [SEQUENCES]),
        ((6, 4), {"proj_size": 2, "batch_first": True}, [SEQUENCES]),
    ],
    "GRU": [((6, 4), {"num_layers": 2, "bidirectional": True}, [SEQUENCES])],
    "RNNCell": [((6, 4), {}, [VECTORS])],
    "LSTMCell": [((6, 4), {"bias": False}, [VECTORS])],
    "GRUCell": [((6, 4), {}, [VECTORS])],
    "MultiheadAttention": [
        ((6, 2), {}, [SEQUENCES] * 3),
        ((6, 2), {"batch_first": True, "add_bias_kv": True, "bias": False}, [SEQUENCES] * 3),
        ((6, 3), {"kdim": 4, "vdim": 2}, [SEQUENCES, (3, 5, 4), (3, 5, 2)]),
    ],
    "TransformerEncoderLayer": [
        ((6, 2, 8), {"batch_first": True}, [SEQUENCES]),
        ((6, 2, 8), {"norm_first": True}, [SEQUENCES]),
    ],
    "TransformerDecoderLayer": [
        ((6, 2, 8), {"activation": "gelu", "bias": False}, [SEQUENCES, SEQUENCES])
    ],
    "TransformerEncoder": [
        ((nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 2), {}, [SEQUENCES])
    ],
    "TransformerDecoder": [
        (
            (nn.TransformerDecoderLayer(6, 2, 8), 2),
            {"norm": nn.LayerNorm(6)},
            [SEQUENCES, SEQUENCES],
        )
    ],
    "Transformer": [((6, 2, 1, 1, 8), {"batch_first": True}, [SEQUENCES, SEQUENCES])],
    "LinearCrossEntropyLoss": [((6, 9), {"bias": True}, [VECTORS, "4"])],
    "AdaptiveLogSoftmaxWithLoss": [
        ((6, 9, [3, 5]), {"head_bias": True, "div_value": 1.5}, [VECTORS, "4"])
    ],
}
CONTAINERS = {
    "Module",
    "Container",
    "Sequential",
    "ModuleList",
    "ModuleDict",
    "ParameterList",
    "ParameterDict",
}
NOT_ALONE = {*CONTAINERS, "DataParallel", "RNNBase", "RNNCellBase"}
CLASSES = {
    name: cls
    for name, cls in vars(nn).items()
    if inspect.isclass(cls) and issubclass(cls, nn.Module)
}
# Some classes are newer than some releases.
CASES = [(name, number) for name in MADE if name in CLASSES for number in range(len(MADE[name]))]


def made(name, number):
    """(module, inputs)."""
    torch.manual_seed(0)
    arguments, options, shapes = MADE[name][number]
    inputs = [
        torch.randint(9, tuple(map(int, shape.split())))
        if isinstance(shape, str)
        else torch.randn(shape)
        for shape in shapes
    ]
    # Layers among the arguments were made on the CPU.
    module = CLASSES[name](*arguments, **options).to(inputs[0].device)
    with torch.no_grad():
        for parameter in module.parameters():
            # No bias and no norm is left at 0 or 1.
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module, inputs


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name, number", CASES, ids=[f"{name}-{number}" for name, number in CASES])
def test_a_class_trains_as_dense(name, number, training):
    module, inputs = made(name, number)
    for turn in range(4):
        dense_twin.assert_trains_as_dense(
            module, inputs, dense_twin.plan_of(module, turn), training
        )


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name, number", CASES, ids=[f"{name}-{number}" for name, number in CASES])
def test_each_parameter_alone_trains_as_dense(name, number, training):
    """torch and its modules may decide by what requires grad which way to take."""
    module, inputs = made(name, number)
    for parameter, what in dense_twin.plan_of(module).items():
        dense_twin.assert_trains_as_dense(module, inputs, sft.Plan({parameter: what}), training)


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_the_table_holds_every_class_that_has_parameters():
    for name, cls in CLASSES.items():
        if name not in MADE and name not in NOT_ALONE and not name.startswith("Lazy"):
            assert not list(constructed(cls).parameters()), (
                f"nn.{name} has parameters and is not tested"
            )


def constructed(cls):
    for arguments in ((), (2,), (2, 2), (1, 2, 3), (1, (2, 3))):
        try:
            return cls(*arguments)
        except (TypeError, ValueError):
            continue
    raise AssertionError(
        f"nn.{cls.__name__}: no way to construct it is known; give it a line in the table"
    )


@pytest.mark.parametrize("name", [name for name in CLASSES if name.startswith("Lazy")])
def test_a_lazy_class_is_refused_by_name_until_it_knows_its_shapes(name):
    arguments = (4, 3) if "Conv" in name else (4,) if name == "LazyLinear" else ()
    options = {"affine": True} if "Instance" in name else {}
    model = nn.Sequential(CLASSES[name](*arguments, **options))
    with pytest.raises((ValueError, TypeError), match="0.weight"):
        sft.convert(model, {"0.weight": sft.Rows([0])})
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "container",
    [nn.ParameterList([torch.ones(3, 4)]), nn.ParameterDict({"0": torch.ones(3, 4)})],
    ids=["ParameterList", "ParameterDict"],
)
def test_a_list_of_parameters_is_refused_by_name_or_trains(container):
    """Its owner's forward reads it; alone it has none."""

    x = torch.randn(2, 3)

    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.held = copy.deepcopy(container).to(x.device)

        def forward(self, x):
            return x @ self.held["0" if isinstance(self.held, nn.ParameterDict) else 0]

    dense_twin.assert_trains_as_dense(Owner(), [x], sft.Plan({"held.0": sft.Rows([1])}))
