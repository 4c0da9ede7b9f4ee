"""Frozen linear layers under autocast."""

import copy

import pytest
import torch

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")


def test_one_token_without_a_batch():
    plain = torch.nn.Linear(8, 6)
    plain.weight.requires_grad_(False)
    lean = copy.deepcopy(plain)
    sft.lean(lean)
    x = torch.randn(8)
    grads = []
    for layer in (plain, lean):
        state = x.clone().requires_grad_()
        with torch.autocast(x.device.type, torch.bfloat16):
            layer(state).sum().backward()
        grads.append((state.grad, layer.bias.grad))
    assert all(torch.equal(a, b) for a, b in zip(*grads))
