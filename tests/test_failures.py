"""A call that fails half-way (no CUDA, out of memory) leaves the model whole.

Nothing trained is lost, and the next try succeeds.
"""

import copy
import itertools

import pytest
import torch
from helpers import small_net
from helpers.llama import tiny_llama
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import sparse_ft as sft


class OutOfMemory(TorchDispatchMode):
    """Raises at the operation number `at`, counted from 1."""

    def __init__(self, at):
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if self.count == self.at:
            raise torch.OutOfMemoryError(f"planted at {func}")
        return func(*args, **(kwargs or {}))


def each_operation(prepare, stride=1):
    """What `prepare` gives, after its call (the last) has failed at each `stride`th operation."""
    for at in itertools.count(1, stride):
        *things, act = prepare()
        try:
            with OutOfMemory(at):
                act()
        except RuntimeError as error:  # load_state_dict raises one of its own
            assert "planted" in str(error)
            yield (*things, act)
        else:
            return


def looks(model):
    """All that convert, lean and revert change."""
    modules = []
    for module in model.modules():
        held = [*module._parameters], [*module._modules], len(module._forward_pre_hooks)
        modules.append((type(module), sorted(module.__dict__), *held))
    return modules, [(name, p.requires_grad, p.tolist()) for name, p in model.named_parameters()]


def trained():
    """A converted model and its optimiser, after two steps, with the gradients of a third."""
    model = small_net.net()
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=0.1)
    small_net.train(model, optimizer, 2)
    optimizer.zero_grad()
    small_net.loss_of(model, 2).backward()
    return model, optimizer


def go_on(model, optimizer):
    optimizer.step()
    small_net.train(model, optimizer, 2, start=3)
    return small_net.everything(model, optimizer)


def half_way(tensor):
    """A cast that fails in a layer in the middle."""
    if tensor.numel() == 32:  # third.weight
        raise torch.OutOfMemoryError("planted")
    return tensor.double()


def never(tensor):
    raise AssertionError("Torch not compiled with CUDA enabled")


FAILED = {
    "nothing moved": lambda model: model._apply(never),
    "some layers cast": lambda model: model._apply(half_way),
    "to(int8)": lambda model: model.to(torch.int8),
}


@pytest.mark.parametrize("name", FAILED)
def test_training_goes_on_with_the_same_bits_after_a_failed_move(name):
    expected = go_on(*trained())
    model, optimizer = trained()
    held = {name: p for name, p in model.named_parameters()}
    with pytest.raises((torch.OutOfMemoryError, AssertionError, TypeError)):
        FAILED[name](model)
    model.float()  # torch leaves a dense model half cast, too
    assert held == dict(model.named_parameters()), "the optimiser holds what the model holds"
    small_net.assert_same_bits(go_on(model, optimizer), expected)
    small_net.assert_weights_show_values(model)


def test_each_operation_of_a_move():
    expected = go_on(*trained())

    def prepare():
        model, optimizer = trained()
        return model, optimizer, model.double

    failures = 0
    for model, optimizer, _ in each_operation(prepare, stride=3):
        reverted = sft.revert(copy.deepcopy(model).float())
        assert torch.equal(reverted.embed.weight, model.float().embed.weight)
        small_net.assert_same_bits(go_on(model, optimizer), expected)
        failures += 1
    assert failures > 10


def test_parameters_that_a_move_replaces():
    """`torch.__future__` lets a move put new parameters in the place of the old ones."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model = small_net.net()
        with pytest.raises(torch.OutOfMemoryError):
            model._apply(half_way)
        model.float()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)  # traceless
        small_net.train(model, optimizer, 2)
        small_net.loss_of(model, 0)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    small_net.assert_weights_show_values(model)


def small():
    torch.manual_seed(0)
    layers = nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU(), nn.LSTM(4, 4), nn.Linear(4, 2)
    return nn.Sequential(*layers)


SMALL_PLAN = {
    "0.bias": "all",
    "1.weight": sft.Columns([1]),
    "3.weight_hh_l0": sft.Entries([1, 5]),
    "4.weight": sft.Rows([0]),
}
LLAMA_PLAN = {
    "lm_head.weight": sft.Rows([1]),
    "model.layers.0.mlp.up_proj.weight": sft.Columns([0]),
}
MODELS = {"small": (small, SMALL_PLAN, 1), "llama": (tiny_llama, LLAMA_PLAN, 3)}


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_each_operation_of_convert(name, lean):
    build, plan, stride = MODELS[name]
    befores = {}

    def prepare():
        model = build()
        befores[model] = looks(model)
        return model, lambda: sft.convert(model, plan, lean=lean)

    for model, again in each_operation(prepare, stride):
        assert looks(model) == befores.pop(model)
        again()
        assert sft.summary(model).trainable == sft.convert(build(), plan).trainable


@pytest.mark.parametrize("name", MODELS)
def test_each_operation_of_revert(name):
    build, plan, stride = MODELS[name]

    def prepare():
        model = build()
        sft.convert(model, plan, lean=True)
        for module in model.modules():
            if isinstance(module, sft.nn.Selected):
                module.values.data += 1  # no trace but the flag that an optimiser's step leaves
                module.after_step(written=False, reached=True)
        return model, lambda: sft.revert(model)

    reverted, again = prepare()
    again()
    expected = looks(reverted)
    failures = 0
    for model, again in each_operation(prepare, stride):
        again()
        assert looks(model) == expected
        failures += 1
    assert failures


def test_each_operation_of_load_state_dict():
    donor, _ = trained()
    state = {name: tensor.clone() for name, tensor in donor.state_dict().items()}

    def prepare():
        model = small_net.net()
        return model, lambda: model.load_state_dict(state)

    for model, again in each_operation(prepare):
        small_net.loss_of(model, 0)
        again()
        small_net.assert_same_bits(model.state_dict(), state)
        small_net.assert_weights_show_values(model)
        sft.revert(model)


def test_from_linear_that_fails_leaves_the_linear_trainable():
    def prepare():
        linear, selection = nn.Linear(4, 4), sft.Rows([1])
        return linear, lambda: sft.nn.SelectiveLinear.from_linear(linear, selection)

    for linear, again in each_operation(prepare):
        assert linear.weight.requires_grad and type(linear) is nn.Linear
        again()
