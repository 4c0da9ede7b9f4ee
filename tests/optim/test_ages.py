"""Ages of entries in a state_dict: taken where they are whole, refused by name where not."""

import copy

import pytest
import torch
from helpers.reselected import backward, net, plan_of

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")


def trained():
    model = net(torch.float64)
    sft.convert(model, plan_of(0))
    optimizer = sft.SelectiveAdamW(model.named_parameters(), 1e-2)
    for number in range(4):
        if number == 2:
            sft.reselect(model, optimizer, plan_of(1))
        backward(model, number, torch.float64)
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def fresh():
    model = net(torch.float64)
    sft.convert(model, plan_of(1))
    return sft.SelectiveAdamW(model.named_parameters(), 1e-2)


def test_they_come_through():
    _, optimizer = trained()
    saved = optimizer.state_dict()
    other = fresh()
    other.load_state_dict(copy.deepcopy(saved))
    for number, state in other.state_dict()["state"].items():
        assert state["generation"].dtype == torch.uint8
        for name, tensor in state.items():
            assert torch.equal(tensor, saved["state"][number][name])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("births"), "generation and births are tensors, and go together"),
        (lambda s: s.update(births=torch.zeros(2, 2)), r"its births have shape \(2, 2\)"),
        (lambda s: s.update(births=torch.zeros(257)), r"expected\s+1 to 256"),
        (lambda s: s.update(generation=s["generation"][:1]), "its generation is torch.uint8"),
        (lambda s: s.update(generation=s["generation"].float()), "its generation is torch.float32"),
        (lambda s: s.update(births=s["births"][:1]), "generation 1 has no birth among 1"),
    ],
)
def test_what_is_not_whole_is_refused_by_name_and_nothing_is_loaded(change, message):
    _, optimizer = trained()
    saved = copy.deepcopy(optimizer.state_dict())
    change(saved["state"][0])
    other = fresh()
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(saved)
    assert not other.state
