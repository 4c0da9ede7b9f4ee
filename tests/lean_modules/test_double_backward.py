"""A second derivative through a lean module is refused, not left out."""

import pytest
import torch
from helpers.lean_twins import twins
from torch import nn

pytestmark = pytest.mark.usefixtures("made_on_device")

MODULES = {
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "MaxPool2d": lambda: nn.MaxPool2d(2),
    "BatchNorm2d": lambda: nn.BatchNorm2d(4).eval().requires_grad_(False),
    "Dropout": nn.Dropout,
}


@pytest.mark.parametrize("name", MODULES)
def test_twice_or_not_at_all(name):
    """In calls that name their inputs, too, where autograd leaves out what they do not need."""
    plain, lean = twins(nn.Sequential(nn.Conv2d(4, 4, 1), MODULES[name]()))
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    torch.manual_seed(1)
    try:
        (got,) = torch.autograd.grad(lean(x).square().sum(), x, create_graph=True)
        (got,) = torch.autograd.grad(got.square().sum(), lean[0].weight)
    except RuntimeError as error:
        assert "double backward" in str(error)
        return
    torch.manual_seed(1)
    (want,) = torch.autograd.grad(plain(x).square().sum(), x, create_graph=True)
    (want,) = torch.autograd.grad(want.square().sum(), plain[0].weight)
    torch.testing.assert_close(got, want)
