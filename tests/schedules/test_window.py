"""Window: of every gradient the largest entries stay, and the price is said."""

import pytest
import torch
from torch import nn

import sparse_ft as sft


def test_the_largest_of_what_has_accumulated_moves():
    model = nn.Linear(10, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="Window: it needs the whole gradient of 2 parameters"):
        window = sft.Window(0.25).attach(model, optimizer)
    before = model.weight.detach().clone()
    for _ in range(2):  # two backwards, one update
        model(torch.randn(3, 10)).square().mean().backward()
    gradient = model.weight.grad.clone()
    optimizer.step()
    window.step()
    mask = gradient.abs() >= gradient.abs().flatten().topk(20).values[-1]
    assert torch.equal(model.weight.grad, gradient * mask)
    assert torch.allclose(before - model.weight, 0.1 * gradient * mask)
    window.detach()
    model.zero_grad()
    model(torch.randn(3, 10)).square().mean().backward()
    optimizer.step()
    assert (model.weight.grad != 0).all() and window.state_dict() == {"steps": 1}


def test_what_is_no_share_is_named():
    with pytest.raises(ValueError, match="density: .*got 0"):
        sft.Window(0)
    with pytest.raises(ValueError, match="optimizer: .*got None"):
        sft.Window(0.5).attach(nn.Linear(2, 2), None)
