"""in_backward=True refuses by name what it cannot serve."""

import pytest
import torch
from helpers.small_net import (
    Net,
    assert_same_bits,
    assert_weights_show_values,
    loss_of,
    net,
    train,
    weights,
)
from torch import nn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")


def in_backward(**settings):
    model = net()
    return model, sft.SelectiveAdamW(model.named_parameters(), 1e-2, in_backward=True, **settings)


def test_skip_nonfinite_is_refused():
    with pytest.raises(ValueError, match="skip_nonfinite: .*in_backward"):
        in_backward(skip_nonfinite=True)


def test_accumulation_is_refused_by_name_and_training_goes_on_after_it():
    model, optimizer = in_backward()
    loss_of(model, 0).backward()
    with pytest.raises(
        RuntimeError, match=r"third\.(bias|values): a second gradient before optimizer.step"
    ):
        loss_of(model, 1).backward()
    optimizer.zero_grad()
    optimizer.step()
    train(model, optimizer, 2)
    assert_weights_show_values(model)


def test_grad_scaler_is_refused_and_leaves_nothing_behind(device):
    model, optimizer = in_backward()
    scaler = torch.amp.GradScaler(device.type, init_scale=16.0)
    scaler.scale(loss_of(model, 0)).backward()
    with pytest.raises(RuntimeError, match="grad_scale: .*GradScaler"):
        scaler.step(optimizer)
    train(model, optimizer, 2)


def test_a_gradient_set_by_hand_is_refused():
    model, optimizer = in_backward()
    model.third.bias.grad = torch.ones_like(model.third.bias)
    with pytest.raises(RuntimeError, match=r"third.bias: .*set by hand"):
        optimizer.step()


def test_a_parameter_that_was_frozen_then_is_refused():
    layer = nn.Linear(4, 4)
    optimizer = sft.SelectiveAdamW([layer.weight], in_backward=True)
    optimizer.add_param_group({"params": [layer.bias.requires_grad_(False)]})
    layer.bias.requires_grad_(True)
    layer(torch.ones(2, 4)).sum().backward()
    with pytest.raises(RuntimeError, match=r"shape \(4,\): .*frozen"):
        optimizer.step()


def test_two_of_them_on_one_parameter_are_refused():
    model, optimizer = in_backward()
    other = sft.SelectiveAdamW(model.parameters(), in_backward=True)
    with pytest.raises(RuntimeError, match="another optimiser"):
        loss_of(model, 0).backward()
    assert optimizer is not other


def test_several_processes_are_refused(monkeypatch):
    model, _optimizer = in_backward()
    before = weights(model)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="in_backward: .*averaged"):
        loss_of(model, 0).backward()
    assert_same_bits(weights(model), before)


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = sft.SelectiveAdamW(embedding.parameters(), in_backward=True)
    with pytest.raises(RuntimeError, match="grad: .*sparse"):
        embedding(torch.tensor([1])).sum().backward()
    assert optimizer.state == {}


def test_a_frozen_net_has_no_hooks_to_set():
    with pytest.raises(ValueError, match="params: nothing requires grad"):
        sft.SelectiveAdamW(Net().requires_grad_(False).parameters(), in_backward=True)
