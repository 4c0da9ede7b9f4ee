"""Plan.match: globs, slices, and what of them is refused."""

import pytest
import torch
from torch import nn

import sparse_ft as sft


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"proj": nn.Linear(4, 4), "norm1": nn.LayerNorm(4)}) for _ in range(2)
        )
        self.conv = nn.Conv2d(4, 6, 3)
        self.scale = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight


@pytest.fixture
def net():
    return Net()


def test_globs_and_exact_names(net):
    plan = sft.Plan.match(net, {"*.norm*": "all", "layers.0.proj.weight": sft.Rows([1])})
    norms = {f"layers.{i}.norm1.{name}": "all" for i in range(2) for name in ("weight", "bias")}
    assert plan == sft.Plan({**norms, "layers.0.proj.weight": sft.Rows([1])})
    assert list(sft.Plan.match(net, {"layers.[0].proj.[wb]*": "all"})) == [
        "layers.0.proj.weight", "layers.0.proj.bias",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "pattern, want",
    [
        ("embed.weight[7:]", sft.Rows([7, 8, 9])),
        ("*embed*[:2]", sft.Rows([0, 1])),
        ("embed.weight[-2:]", sft.Rows([8, 9])),
        ("embed.weight[::4]", sft.Rows([0, 4, 8])),
        ("embed.weight[8:4:-2]", sft.Rows([6, 8])),
        ("embed.weight[:, 1:3]", sft.Columns([1, 2])),
        ("embed.weight[2:4, :]", sft.Rows([2, 3])),
        ("embed.weight[2:4, 1:3]", sft.Entries([9, 10, 13, 14])),
        ("head.weight[:1]", sft.Rows([0])),
    ],
)
def test_slices_of_the_matrix(net, pattern, want):
    """Python's own; a tied parameter goes by its first name."""
    plan = sft.Plan.match(net, {pattern: "all"})
    assert plan == sft.Plan({"embed.weight": want})
    assert plan["embed.weight"].matrix_shape == (10, 4)


def test_a_convolution_is_out_by_in_times_kernel(net):
    plan = sft.Plan.match(net, {"conv.weight[:, 30:]": "all"})
    assert plan["conv.weight"] == sft.Columns(range(30, 36))
    assert plan["conv.weight"].matrix_shape == sft.matrix_shape(net, "conv.weight") == (6, 36)


def test_the_later_pattern_counts(net):
    plan = sft.Plan.match(
        net, {"*proj*": "all", "*proj.weight": sft.Columns([2]), "layers.0.*": None}
    )
    assert plan == sft.Plan({"layers.1.proj.weight": sft.Columns([2]), "layers.1.proj.bias": "all"})


def test_two_slices_count_both(net):
    plan = sft.Plan.match(net, {"embed.weight[:2]": "all", "*embed.weight[-2:]": "all"})
    assert plan == sft.Plan({"embed.weight": sft.Rows([0, 1, 8, 9])})
    with pytest.raises(ValueError, match=r"'embed.weight\[:2\]' and 'embed.weight\[:, :2\]' both"):
        sft.Plan.match(net, {"embed.weight[:2]": "all", "embed.weight[:, :2]": "all"})


@pytest.mark.parametrize(
    "patterns, error, message",
    [
        ({"*.nrom*": "all"}, KeyError, r"'\*.nrom\*' matches no parameter of the model"),
        ({"embed.wieght": "all"}, KeyError, "did you mean 'embed.weight'"),
        (
            {"embed.weight[:11]": "all"},
            IndexError,
            "11 is out of range for 'embed.weight'.*10 rows",
        ),
        ({"embed.weight[:, 5:]": "all"}, IndexError, "has 4 columns"),
        ({"embed.weight[4:4]": "all"}, ValueError, "means none of the 10 rows"),
        ({"embed.weight[::0]": "all"}, ValueError, "a step of 0"),
        ({"embed.weight[:, :, :]": "all"}, ValueError, r"expected \[rows\] or \[rows, columns\]"),
        ({"embed.weight[1:-:2]": "all"}, ValueError, "expected slices as start:stop"),
        ({"embed.weight[:2]": sft.Rows([0])}, ValueError, "so it takes 'all' .of them."),
        ({"scale[:1]": "all"}, ValueError, "'scale' is a scalar"),
        ({"embed.weight": True}, TypeError, "expected a Selection, 'all' or None"),
        ({3: "all"}, TypeError, "expected parameter names or globs, got 3"),
    ],
)
def test_refused_by_name(net, patterns, error, message):
    with pytest.raises(error, match=message):
        sft.Plan.match(net, patterns)


def test_a_plan_that_trains(net):
    plan = sft.Plan.match(net, {"layers.*.proj.weight[:, 1:]": "all", "*norm1.bias[-1:]": "all"})
    sft.convert(net, plan)
    trained = {name: tuple(p.shape) for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {
        f"layers.{i}.{name}.values": shape
        for i in range(2)
        for name, shape in (("proj", (4, 3)), ("norm1.bias_selected", (1,)))
    }
