"""What cannot be converted is refused by the entry's name, and nothing changes."""

import pytest
import torch
from helpers.blocks import Block, everything
from torch import nn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")


@pytest.fixture
def model():
    model = Block()
    model.norm.weight.requires_grad_(False)
    model.up.weight.grad = torch.ones_like(model.up.weight)
    return model


def frozen_statistics(model):
    model.register_parameter(
        "codes", nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    )


def permuted(model):
    model.conv.weight = nn.Parameter(
        model.conv.weight.detach().permute(2, 1, 0).contiguous().permute(2, 1, 0)
    )


def on_meta(model):
    model.up.to("meta")


def with_max_norm(model):
    model.embed.max_norm = 1.0


def under_inference(model):
    with torch.inference_mode():
        model.up = nn.Linear(8, 12)


ROWS = sft.Rows([1])
GOOD = {"down.weight": sft.Rows([0]), "head.bias": "all", "conv.weight": sft.Entries([0])}


@pytest.mark.parametrize(
    "change, plan, error, message",
    [
        (None, {}, ValueError, "plan: it is empty"),
        (None, {"up.wieght": ROWS}, KeyError, "plan: the model has no parameter 'up.wieght'"),
        (None, {"up.wieght": "all"}, KeyError, "plan: the model has no parameter 'up.wieght'"),
        (None, {"upp.weight": ROWS}, KeyError, "'upp.weight'; did you mean 'up.weight'"),
        (None, {"up": ROWS}, KeyError, "no parameter 'up'"),
        (None, {"": ROWS}, KeyError, "no parameter ''"),
        (None, {"down.bias": ROWS}, KeyError, "no parameter 'down.bias'"),
        (None, {"up.weight.data": ROWS}, KeyError, "'up.weight.data'"),
        (
            None,
            {"up.weight": sft.Rows([12])},
            IndexError,
            r"plan: 'up.weight': index: row 12 .*\(12, 8\)",
        ),
        (None, {"up.weight": sft.Columns([8])}, IndexError, r"plan: 'up.weight': index: column 8 "),
        (
            None,
            {"conv.weight": sft.Columns([24])},
            IndexError,
            r"plan: 'conv.weight': index: column 24 .*\(6, 24\)",
        ),
        (
            None,
            {"up.bias": sft.Rows([1])},
            IndexError,
            r"plan: 'up.bias': index: row 1 .*\(1, 12\)",
        ),
        (
            None,
            {"down.weight": sft.Blocks([[3, 0]], (3, 5))},
            IndexError,
            "plan: 'down.weight': index: block_row 3",
        ),
        (None, {"up.weight": "some"}, TypeError, "plan: .*'up.weight', got 'some'"),
        (None, {"up.weight": None}, TypeError, "'up.weight', got None"),
        (None, [1, 2], TypeError, r"plan: expected a mapping .*\[1, 2\]"),
        (frozen_statistics, {"codes": "all"}, TypeError, "plan: 'codes' is torch.int8"),
        (frozen_statistics, {"codes": ROWS}, TypeError, "codes: .*torch.int8"),
        (
            permuted,
            {"conv.weight": ROWS},
            ValueError,
            "plan: 'conv.weight': weight: expected contiguous",
        ),
        (on_meta, {"up.weight": ROWS}, ValueError, "up.weight: on the meta device"),
        (with_max_norm, {"embed.weight": ROWS}, ValueError, "max_norm=1.0"),
        (
            under_inference,
            {"up.weight": ROWS},
            ValueError,
            "up.weight: created under inference_mode",
        ),
    ],
)
def test_errors_name_the_entry_and_change_nothing(model, change, plan, error, message):
    if change is not None:
        change(model)
    whole = {**GOOD, **plan} if isinstance(plan, dict) and plan else plan
    hidden = change in (on_meta, under_inference)  # no bytes or versions to look at
    look = (
        (lambda model: [(n, p.requires_grad) for n, p in model.named_parameters()])
        if hidden
        else everything
    )
    before = look(model)
    with pytest.raises(error, match=message):
        sft.convert(model, whole)
    assert look(model) == before and type(model.down) is nn.Linear
