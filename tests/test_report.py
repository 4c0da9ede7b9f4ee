"""Report: one line for all layers that differ in their number only, and what a lean conversion
left.
"""

import pytest
from torch import nn

import sparse_ft as sft


def model(layers: int = 6) -> nn.Module:
    parts = nn.Module()
    parts.layers = nn.ModuleList(
        nn.ModuleDict({"q": nn.Linear(8, 8), "k": nn.Linear(8, 4)}) for _ in range(layers)
    )
    parts.head = nn.Linear(8, 3)
    return parts


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_layers_share_a_line_and_rows_stay():
    net = model()
    plan = {f"layers.{i}.{name}.weight": sft.Rows([0, 1]) for i in range(6) for name in "qk"} | {
        "head.weight": "all"
    }
    report = sft.convert(net, plan)
    lines = cells(str(report))
    assert [
        "layers.*.q.weight",
        "×6",
        "8×8",
        "96",
        "384",
        "25.00%",
        "rows",
        "SelectiveLinear",
    ] in lines
    assert [
        "layers.*.k.weight",
        "×6",
        "4×8",
        "96",
        "192",
        "50.00%",
        "rows",
        "SelectiveLinear",
    ] in lines
    assert ["head.weight", "3×8", "24", "24", "100.00%", "all", "trains", "whole"] in lines
    assert len(lines) == 5 and lines[-1][:4] == ["trainable", "216", "of", f"{report.total:,}"]
    rows = {row.name: row for row in report.rows}
    assert rows["layers.3.q.weight"].trainable == 16 and len(rows) == 26 and report.lean is None


def test_a_layer_that_differs_has_a_line_of_its_own():
    net = model(3)
    plan = {
        "layers.0.q.weight": sft.Rows([0]),
        "layers.1.q.weight": sft.Rows([0, 1]),
        "layers.2.q.weight": sft.Columns([0]),
    }
    lines = cells(str(sft.convert(net, plan)))
    assert [
        "layers.*.q.weight",
        "×2",
        "8×8",
        "24",
        "128",
        "18.75%",
        "rows",
        "SelectiveLinear",
    ] in lines
    assert ["layers.2.q.weight", "8×8", "8", "64", "12.50%", "columns", "SelectiveLinear"] in lines


@pytest.mark.parametrize(
    "name, meant",
    [
        ("haed.weight", "did you mean 'head.weight'?"),
        ("head", "did you mean 'head.weight' or 'head.bias'?"),
        ("q.weight", "did you mean 'layers.0.q.weight' or 'layers.1.q.weight'?"),
        ("module.head.weight", "did you mean 'head.weight'?"),
        ("zzzz", "there are 'layers.0.q.weight', 'layers.0.q.bias', 'layers.0.k.weight', …"),
    ],
)
def test_an_unknown_name_in_a_plan_is_answered_with_the_nearest(name, meant):
    with pytest.raises(KeyError) as error:
        sft.convert(model(2), {name: "all"})
    assert error.value.args[0] == f"plan: the model has no parameter {name!r}; {meant}"


def llama():
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 20,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))


def test_a_lean_conversion_says_what_it_left_and_what_it_could_do():
    net = llama()
    net.model.norm.forward = net.model.norm.forward  # as someone's wrapper would
    report = sft.convert(net, {"model.layers.0.mlp.up_proj.weight": sft.Columns([3])}, lean=True)
    assert report.lean.left == ["model.norm"] and report.lean.offers == ("LlamaForCausalLM",)
    text = str(report)
    assert "lean left 1 × LlamaRMSNorm: its forward was replaced by someone else" in text
    assert f"{len(report.lean.changed)} modules are lean, 1 are left" in text
    assert "the loss of LlamaForCausalLM" in text and "sft.lean(model, loss=True)" in text


def test_once_the_loss_is_lean_nothing_is_offered():
    net = llama()
    assert "sft.lean(model, loss=True)" not in str(sft.lean(net, loss=True))
    report = sft.convert(net, {"model.layers.0.mlp.up_proj.weight": sft.Columns([3])}, lean=True)
    assert report.lean.offers == () and "loss=True" not in str(report)


def test_a_model_without_such_a_loss_is_offered_none():
    assert sft.lean(nn.Sequential(nn.Linear(2, 2), nn.ReLU())).offers == ()
