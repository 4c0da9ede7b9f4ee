"""Choosing anew in a converted model: by the whole weights as they are now."""

import copy

import pytest
import torch
from helpers.looks import assert_left_alone, looks
from torch import nn

import sparse_ft as sft

pytest.importorskip("transformers")
from helpers import choosing_models  # noqa: E402

SCORES = [
    {"score": "magnitude", "structure": "entries"},
    {"score": "principal", "structure": "entries", "scope": "global"},
    {"score": "gradient", "structure": "entries"},
    {"score": "saliency", "structure": "columns", "combine": "abs_of_sum"},
    {"score": "gradient_abs", "structure": "rows"},
    {"score": "fisher", "structure": "entries"},
]


def trained(case, structure, lean=False):
    """Converted, and trained for three steps."""
    plan = sft.select(case.model, density=0.2, structure=structure, score="random")
    sft.convert(case.model, plan, lean=lean)
    optimizer = sft.SelectiveAdamW(case.model.parameters(), lr=1e-2)
    for _ in range(3):
        case.model(**case.batches[0]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize("settings", SCORES, ids=lambda settings: settings["score"])
@pytest.mark.parametrize("structure", ["entries", "columns"])
@pytest.mark.parametrize("kind", ["Llama", "GPT-2"])
@pytest.mark.filterwarnings("ignore:batches")
def test_as_in_the_model_that_it_is_by_now(kind, structure, settings):
    case = choosing_models.case(kind)
    trained(case, structure)
    case.model(**case.batches[0]).loss.backward()
    before = looks(case.model)
    found = sft.select(case.model, density=0.1, batches=case.batches, **settings)
    assert_left_alone(case.model, before)
    dense = sft.revert(copy.deepcopy(case.model))
    assert found == sft.select(dense, density=0.1, batches=case.batches, **settings)


@pytest.mark.parametrize("structure", ["entries", "columns"])
@pytest.mark.parametrize("kind", ["BERT", "Llama", "GPT-2"])
@pytest.mark.parametrize("score", ["gradient", "fisher"])
@pytest.mark.filterwarnings("ignore:batches")
def test_in_a_lean_model(kind, structure, score):
    case = choosing_models.case(kind)
    trained(case, structure, lean=True)
    forwards = [vars(module).get("forward") for module in case.model.modules()]
    assert any(forwards)
    settings = {"density": 0.1, "structure": "entries", "score": score}
    before = looks(case.model)
    found = sft.select(case.model, batches=case.batches, **settings)
    assert_left_alone(case.model, before)
    assert forwards == [vars(module).get("forward") for module in case.model.modules()]
    dense = sft.revert(copy.deepcopy(case.model))
    assert found == sft.select(dense, batches=case.batches, **settings)


def test_a_forward_that_is_not_a_lean_one_is_not_seen_through():
    case = choosing_models.case("Llama")
    trained(case, "columns")
    layer = case.model.get_submodule("model.layers.0.self_attn.q_proj")
    layer.forward = lambda x: 2 * type(layer).forward(layer, x)
    with pytest.raises(ValueError, match="q_proj.weight' cannot be taken"):
        sft.select(case.model, density=0.1, structure="columns", batches=case.batches)


def test_the_new_plan_is_for_reselect():
    case = choosing_models.case("Llama")
    optimizer = trained(case, "entries")
    plan = sft.select(case.model, density=0.2, structure="entries", score="magnitude")
    if hasattr(sft, "reselect"):
        sft.reselect(case.model, optimizer, plan)
        case.model(**case.batches[0]).loss.backward()
        optimizer.step()
        sft.sync(case.model)
    names = ["*0.mlp*", "*q_proj*"]
    some = sft.select(case.model, density=0.1, score="magnitude", targets=names)
    assert some.keys() == {n for n in plan if ".0.mlp" in n or "q_proj" in n}


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x):
        return self.layer(self.norm(self.layer(x)))


def loss(model, x):
    return model(x).square().mean()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"score": "synflow"}, "model: it is converted already, and score='synflow' needs it"),
        ({"score": "grasp"}, "model: it is converted already, and score='grasp' needs it"),
        ({"score": "gradient", "targets": "norm*"}, "targets: gradients of 'norm.weight' cannot"),
        ({"score": "gradient", "targets": "layer*"}, "'layer.weight' .*more than once"),
        ({"score": "magnitude", "targets": "layer.bias"}, "'layer.bias' names no parameter with"),
    ],
)
def test_what_a_converted_model_cannot_give_is_named(settings, message):
    model = Twice()
    sft.convert(model, {"layer.weight": sft.Columns([1]), "norm.weight": sft.Entries([0])})
    batches = [torch.randn(3, 4)]
    before = looks(model)
    with pytest.raises(ValueError, match=message):
        sft.select(model, density=0.5, batches=batches, loss=loss, **settings)
    assert_left_alone(model, before)
    with pytest.raises(ValueError, match="model: .*not the module that sft.convert was called on"):
        sft.select(nn.Sequential(model), density=0.5, score="random")
