"""The hook after a step looks only at what the step could not tell it of, and finds the same."""

import warnings

import pytest
import torch
from helpers.small_net import assert_same_bits, loss_of, net, trained_parameters, weights
from helpers.warned import messages_of

import sparse_ft as sft
from sparse_ft.nn import steps
from sparse_ft.ops import _native

pytestmark = pytest.mark.usefixtures("made_on_device")

ALIASED = {
    "conv.weight_selected",
    "norm.weight_selected",
}  # their own word is more than the usual one


def set_grad_to_none(model, name):
    model.get_submodule(name)._parameters["values"].grad = None


def step_of_another(model):
    other = sft.SelectiveAdamW(model.parameters(), 1e-3)
    other.step()
    return other


def step_of_a_stranger(model):
    other = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], 1.0)
    other.param_groups[0]["params"][0].grad = torch.ones(2)
    other.step()
    return other


def revert_first(model):
    values = model.first._parameters["values"]
    sft.revert(model)
    return values


CHANGES = {
    "nothing": lambda model: None,
    "a gradient missing": lambda model: set_grad_to_none(model, "second"),
    "all gradients missing": lambda model: model.zero_grad(),
    "another optimiser stepped": step_of_another,
    "an optimiser of other values stepped": step_of_a_stranger,
    "a module reverted": revert_first,
    "values replaced": lambda model: setattr(
        model.third, "values", torch.nn.Parameter(model.third.values.detach().clone())
    ),
}


def after(change):
    """What is known after a steady step, a change, and one more step."""
    model = net()
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for seed in range(4):
            optimizer.zero_grad()
            loss_of(model, seed).backward()
            kept = CHANGES[change](model) if seed == 2 else None
            optimizer.step()
            if kept is not None:
                del kept
            if seed == 2 and change == "a module reverted":
                break
    stepper = steps._steppers[optimizer]
    known = {
        name: (
            module._sparse_ft_state.claim is stepper,
            module._sparse_ft_state.reported,
            module._sparse_ft_state.resized,
            module._sparse_ft_state.shown is None,
            module._sparse_ft_state.suspected is None,
        )
        for name, module in model.named_modules()
        if isinstance(module, sft.nn.Selected)
    }
    return weights(model), known, sorted(messages_of(told))


@pytest.mark.parametrize("change", CHANGES)
def test_the_hook_finds_what_it_would_find_by_looking_at_all(change, monkeypatch):
    tensors, known, told = after(change)
    monkeypatch.setattr(steps.Heard, "left_for", lambda heard, stepper: None)
    expected_tensors, expected, expected_told = after(change)
    assert_same_bits(tensors, expected_tensors)
    assert known == expected and told == expected_told
    assert bool(told) is ("missing" in change or change in ("a module reverted", "values replaced"))


@pytest.mark.skipif(_native.C is None, reason="no compiled part")
def test_a_step_leaves_to_the_hook_what_a_word_would_change():
    model = net()
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2)
    labels = {id(p): name for name, p in model.named_parameters()}

    def left(stepper=None):
        heard = steps.Heard()
        with torch.no_grad():
            optimizer._gathered.batches(optimizer.param_groups, optimizer.state, heard)
        found = heard.left_for(stepper or steps._steppers[optimizer])
        return found and {labels[id(p)].removesuffix(".values") for p in found}

    for seed in range(2):
        loss_of(model, seed).backward()
        optimizer.step()
    assert left() == ALIASED
    set_grad_to_none(model, "second")
    assert left() == {*ALIASED, "second"}
    model.first._sparse_ft_state.resized = True
    assert left() == {*ALIASED, "second", "first"}
    assert left(steps.Stepper()) is None, "their modules are claimed by another"
    for p in trained_parameters(model):
        p.grad = None
    assert left() == {labels[id(p)].removesuffix(".values") for p in trained_parameters(model)}


def test_what_was_heard_is_of_one_step():
    """Nothing of it is kept: neither by the optimiser, nor for a step that fails."""
    model = net()
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2)
    for seed in range(3):
        loss_of(model, seed).backward()
        optimizer.step()
        assert optimizer.heard is None
    model.first.values.grad = torch.ones(8, 2).to_sparse()
    optimizer.heard = steps.Heard()
    with pytest.raises(RuntimeError, match="dense gradients"):
        optimizer.step()
    assert optimizer.heard is None
