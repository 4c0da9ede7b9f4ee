"""Activations may be computed again: the same choice, with those of one layer alive."""

import functools

import pytest
import torch
from helpers.allocations import allocated_by
from helpers.looks import assert_left_alone, looks
from torch import nn

import sparse_ft as sft

pytest.importorskip("transformers")
from helpers import choosing_models  # noqa: E402


@pytest.mark.parametrize(
    "settings",
    [
        {"score": "gradient", "structure": "entries"},
        {"score": "gradient_abs", "structure": "rows"},
        {"score": "fisher", "structure": "columns"},
    ],
    ids=lambda settings: settings["score"],
)
@pytest.mark.parametrize("kind", ["BERT", "Llama", "GPT-2", "Qwen-MoE", "ViT"])
def test_the_same_choice(kind, settings):
    case = choosing_models.case(kind)
    case.model.train()  # dropout draws the same
    settings = {"density": 0.2, "targets": case.targets, "batches": case.batches, **settings}
    wanted = sft.select(case.model, **settings)
    before, config = looks(case.model), case.model.config.to_dict()
    assert sft.select(case.model, recompute=True, **settings) == wanted
    assert_left_alone(case.model, before)
    assert case.model.config.to_dict() == config


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        layers = (nn.Sequential(*[nn.Linear(32, 32), nn.GELU()] * 4) for _ in range(8))
        self.blocks = nn.ModuleList(layers)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_what_it_holds(tmp_path):
    model, x = Blocks(), torch.randn(512, 32)
    settings = {"density": 0.2, "score": "gradient_abs", "targets": "*.weight", "batches": [x]}
    settings["loss"] = lambda model, x: model(x).square().mean()
    taken = []
    for how in (False, True):
        select = functools.partial(sft.select, model, recompute=how, **settings)
        taken.append(allocated_by(select, tmp_path).most)
    plain, again = taken
    assert again < plain / 3


def test_a_model_without_layers_in_a_list_is_named():
    with pytest.raises(ValueError, match="recompute: the model has no nn.ModuleList"):
        sft.select(nn.Sequential(nn.Linear(2, 2)), density=0.5, score="random", recompute=True)
