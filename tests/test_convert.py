"""convert, revert and summary.

What they refuse and in which words, all or nothing, and every byte given back.
"""

import copy
import pickle

import pytest
import torch
from helpers.blocks import PLAN, TRAINABLE, Block, everything
from torch import nn

import sparse_ft as sft
from sparse_ft.nn import SelectedParameter, SelectiveEmbedding, SelectiveLinear

pytestmark = pytest.mark.usefixtures("made_on_device")


@pytest.fixture
def model():
    model = Block()
    model.norm.weight.requires_grad_(False)
    model.up.weight.grad = torch.ones_like(model.up.weight)
    return model


def train(model, steps=3, optimizer=None):
    tokens = torch.randint(11, (4, 6))
    optimizer = optimizer or sft.SelectiveAdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(tokens).square().mean().backward()
        optimizer.step()


def test_report_and_summary(model):
    total = sum(p.numel() for p in model.parameters())
    report = sft.convert(model, PLAN)
    rows = {row.name: row for row in report.rows}
    assert report.total == total and report.trainable == sum(TRAINABLE.values())
    assert {name: row.trainable for name, row in rows.items() if row.trainable} == TRAINABLE
    assert {name: row.structure for name, row in rows.items() if row.trainable} == {
        "embed.weight": "rows",
        "up.weight": "columns",
        "down.weight": "blocks",
        "conv.weight": "entries",
        "head.bias": "all",
        "up.bias": "entries",
    }
    assert report.replaced == ["embed.weight", "up.weight", "down.weight"]
    assert (
        sorted(report.transient) == ["conv.weight", "up.bias"]
        and "dense gradient, transient" in rows["conv.weight"].how
    )
    assert sorted(report.frozen) == ["conv.bias", "head.weight", "norm.bias", "norm.weight"]
    assert "not in the plan" in rows["head.weight"].how and rows["conv.weight"].shape == (6, 8, 3)
    text = str(report)
    assert all(name in text for name in TRAINABLE) and "head.weight" not in text
    assert f"trainable {report.trainable:,} of {total:,}" in text and "4 parameters frozen" in text
    assert sft.summary(model).rows == report.rows


def test_summary_of_a_model_that_was_not_converted(model):
    report = sft.summary(model)
    assert report.trainable == report.total - 6 and report.frozen == ["norm.weight"]
    assert all(row.structure == "all" for row in report.rows if row.trainable)


def test_trainable_is_what_the_optimiser_sees(model):
    sft.convert(model, PLAN)
    padding = 2 * 15 - 19
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == sum(TRAINABLE.values()) + padding
    assert (
        type(model.up) is SelectiveLinear
        and type(model.embed) is SelectiveEmbedding
        and type(model.conv) is nn.Conv1d
    )
    assert type(model) is Block and isinstance(model.conv.weight_selected, SelectedParameter)


def test_only_what_the_plan_names_changes(model):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sft.convert(model, PLAN)
    train(model)
    sft.revert(model)
    for name, parameter in model.named_parameters():
        moved = parameter.detach() != before[name]
        chosen = torch.zeros_like(moved)
        if name in PLAN:
            chosen = (
                torch.ones_like(moved)
                if PLAN[name] == "all"
                else PLAN[name].mask(sft.matrix_shape(model, name)).view_as(moved).to(moved.device)
            )
        assert not (moved & ~chosen).any(), name
        assert moved.any() == (name in PLAN), name


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
def test_revert_without_a_step_gives_every_byte_back(model, dtype):
    model.to(dtype)
    before = everything(model)
    sft.convert(model, PLAN)
    model.eval()(torch.randint(11, (2, 3)))
    model.train()(torch.randint(11, (2, 3))).sum().backward()
    assert sft.revert(model) is model
    after = everything(model)
    assert all(after[key] == before[key] for key in ("bytes", "types", "keys", "hooks"))
    assert {name: flag[:3] for name, flag in after["flags"].items()} == {
        name: flag[:3] for name, flag in before["flags"].items()
    }


def test_revert_right_away_leaves_no_trace(model):
    before = everything(model)
    sft.convert(model, PLAN)
    sft.revert(model)
    assert everything(model) == before


def test_revert_holds_the_trained_weights_and_the_same_parameters(model):
    parameters = dict(model.named_parameters())
    sft.convert(model, PLAN)
    for optimizer in (
        None,
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5),
    ):
        train(model, optimizer=optimizer)
    tokens = torch.randint(11, (4, 6))
    want = model(tokens)
    values = {"up": model.up.values.detach().clone(), "embed": model.embed.values.detach().clone()}
    sft.revert(model)
    assert torch.equal(model(tokens), want)
    assert torch.equal(model.up.weight[:, [0, 7]], values["up"]) and torch.equal(
        model.embed.weight[[2, 5]], values["embed"]
    )
    assert all(p is parameters[name] for name, p in model.named_parameters())
    again = sft.convert(model, PLAN)
    assert again.trainable == sum(TRAINABLE.values()) and torch.equal(model.up.values, values["up"])


def test_convert_again_with_an_equal_plan_changes_nothing(model):
    first = sft.convert(model, PLAN)
    train(model, 1)
    before, values = everything(model), model.up.values
    for plan in (PLAN, sft.Plan(PLAN), copy.deepcopy(sft.Plan(PLAN)), dict(reversed(PLAN.items()))):
        assert sft.convert(model, plan).rows == first.rows
        assert everything(model) == before and model.up.values is values
    sft.convert(copy.deepcopy(model), PLAN)
    sft.convert(pickle.loads(pickle.dumps(model)), PLAN)


def test_convert_with_another_plan_is_refused_and_changes_nothing(model):
    sft.convert(model, PLAN)
    before = everything(model)
    for plan in (
        {**PLAN, "up.weight": sft.Columns([0])},
        {"up.weight": PLAN["up.weight"]},
        {**PLAN, "head.weight": "all"},
    ):
        with pytest.raises(
            ValueError, match="model: already converted with another plan; call sft.revert"
        ):
            sft.convert(model, plan)
        assert everything(model) == before


def test_parts_of_a_converted_model_are_refused_by_name(model):
    inner = nn.Sequential(model)
    sft.convert(model, PLAN)
    before = everything(inner)
    with pytest.raises(ValueError, match="model: '0.embed' is selective already"):
        sft.convert(inner, {"0.head.weight": "all"})
    assert everything(inner) == before


def test_revert_of_what_was_not_converted(model):
    with pytest.raises(ValueError, match="model: it was not converted"):
        sft.revert(model)
    sft.convert(model, PLAN)
    sft.revert(model)
    with pytest.raises(ValueError, match="model: it was not converted"):
        sft.revert(model)


def test_only_this_instance_is_converted(model):
    twin = copy.deepcopy(model)
    sft.convert(model, PLAN)
    assert (
        type(twin.up) is nn.Linear
        and type(nn.Linear(2, 2)) is nn.Linear
        and twin.up.weight.requires_grad
    )


def test_a_linear_layer_itself_is_a_model():
    linear = nn.Linear(4, 3)
    report = sft.convert(linear, {"weight": sft.Rows([1]), "bias": "all"})
    assert (
        type(linear) is SelectiveLinear
        and report.trainable == 7
        and sft.revert(linear) is linear
        and type(linear) is nn.Linear
    )


def test_all_unfreezes_and_revert_restores_the_flags(model):
    sft.convert(model, {"norm.weight": "all"})
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["norm.weight"]
    sft.revert(model)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["norm.weight"]


def tied(model):
    model.up = nn.Linear(8, 11, bias=False)
    model.up.weight = model.embed.weight


def test_a_tied_parameter_is_refused_by_name_or_trains_whole(model):
    tied(model)
    before = everything(model)
    for name, other in (("embed.weight", "up.weight"), ("up.weight", "embed.weight")):
        with pytest.raises(
            ValueError, match=rf"plan: '{name}' is one parameter with {other} \(tied\)"
        ):
            sft.convert(model, {name: sft.Columns([1])})
        assert everything(model) == before
    for name in ("embed.weight", "up.weight"):
        report = sft.convert(model, {name: "all"})
        assert (
            report.trainable == 88
            and model.up.weight.requires_grad
            and report.total == sum(p.numel() for p in model.parameters())
        )
        sft.revert(model)


def test_one_module_under_two_names_is_not_tied():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    report = sft.convert(model, {"2.weight": sft.Rows([1])})
    assert report.trainable == 4 and type(model[0]) is SelectiveLinear and model[0] is model[2]
    model(torch.randn(2, 4)).sum().backward()
    assert shared.values.grad is not None
    sft.revert(model)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("last", range(4))
def test_a_failure_half_way_undoes_the_rest(model, last, monkeypatch):
    """Memory may run out at any selection: what was converted before it goes back."""
    before, calls = everything(model), []
    gather = sft.Selection.gather

    def fails(self, *arguments, **keywords):
        calls.append(self)
        if len(calls) > last:
            raise MemoryError("out of memory")
        return gather(self, *arguments, **keywords)

    monkeypatch.setattr(sft.Selection, "gather", fails)
    with pytest.raises(MemoryError):
        sft.convert(model, PLAN)
    assert everything(model) == before
    monkeypatch.undo()
    assert sft.convert(model, PLAN).trainable == sum(TRAINABLE.values())


@pytest.mark.parametrize(
    "make, name, shape",
    [
        (lambda: nn.Linear(3, 5), "weight", (5, 3)),
        (lambda: nn.Linear(3, 5), "bias", (1, 5)),
        (lambda: nn.Conv2d(4, 6, (3, 2), groups=2), "weight", (6, 12)),
        (lambda: nn.Conv2d(4, 6, 3), "bias", (1, 6)),
        (lambda: nn.ConvTranspose1d(4, 6, 3), "weight", (4, 18)),
        (lambda: nn.Embedding(7, 2), "weight", (7, 2)),
        (lambda: nn.LSTM(3, 4), "weight_hh_l0", (16, 4)),
        (lambda: nn.MultiheadAttention(4, 2), "in_proj_weight", (12, 4)),
        (lambda: nn.MultiheadAttention(4, 2), "out_proj.weight", (4, 4)),
        (lambda: nn.LayerNorm((2, 3)), "weight", (2, 3)),
        (lambda: nn.Bilinear(2, 3, 4), "weight", (8, 3)),
    ],
)
def test_matrix_shape(make, name, shape):
    assert sft.matrix_shape(make(), name) == shape
    assert sft.matrix_shape(nn.Sequential(make()), f"0.{name}") == shape


def test_matrix_shape_errors():
    with pytest.raises(KeyError, match="no parameter 'wieght'.*'weight'"):
        sft.matrix_shape(nn.Linear(2, 2), "wieght")
    module = nn.Module()
    module.scale = nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError, match="name: 'scale' is a scalar"):
        sft.matrix_shape(module, "scale")
    assert sft.convert(module, {"scale": "all"}).trainable == 1


def test_scalars_cannot_have_a_selection():
    module = nn.Sequential(nn.Linear(2, 2))
    module.scale = nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError, match="'scale' is a scalar"):
        sft.convert(module, {"0.weight": sft.Rows([1]), "scale": sft.Entries([0])})
    assert type(module[0]) is nn.Linear
