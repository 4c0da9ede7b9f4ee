"""A selected weight that a module keeps in a list of its own, too, is named.

A read there sends no gradient.
"""

import warnings

import pytest
import torch
from helpers.warned import messages_of
from torch import nn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")


class Net(nn.Module):
    def __init__(self, keep):
        super().__init__()
        self.layer, self.conv, self.recurrent = nn.Linear(4, 4), nn.Conv1d(4, 4, 1), nn.LSTM(4, 4)
        keep(self)

    def forward(self, x):
        return self.recurrent(self.layer(x))[0]


def in_a_list(net):
    net.kept = [net.layer.weight, net.conv.weight]


def in_nested_containers(net):
    net.conv.kept = {"weights": [(net.layer.weight,), {1: net.conv.weight}]}


PLAN = {
    "layer.weight": sft.Columns([1]),
    "conv.weight": sft.Rows([1]),
    "recurrent.weight_hh_l0": sft.Rows([1]),
}


@pytest.mark.parametrize("keep, place", [(in_a_list, "kept"), (in_nested_containers, "conv.kept")])
def test_it_is_named(keep, place):
    model = Net(keep)
    with pytest.warns(UserWarning) as caught:
        sft.convert(model, PLAN)
    said = sorted(messages_of(caught))
    assert len(said) == 2
    for message, name in zip(said, ("conv.weight", "layer.weight")):
        assert message.startswith(f"{name}: `{place}` holds it too")


def test_nothing_is_said_of_what_does_not_train_by_a_selection():
    def keep(net):
        net.kept = [net.layer.bias, torch.zeros(3), "text", {1: None}]
        net.itself = [net]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Net(keep)
        sft.convert(model, PLAN)
        sft.revert(model)
