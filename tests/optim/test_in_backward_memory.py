"""How many gradients are alive at a time with in_backward=True."""

import pytest
import torch
from helpers.allocations import allocated_by
from helpers.small_net import trained_parameters
from torch import nn

import sparse_ft as sft


class Deep(nn.Module):
    """Gradients are much of what lives in a backward.

    Few tokens through wide layers that train whole or by rows.
    """

    def __init__(self, layers=8, width=128):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.mark.parametrize("whole", [False, True])
def test_gradients_of_all_layers_are_never_alive_together(whole, tmp_path):
    layers, width, peaks = 8, 128, []
    for flags in ({}, {"in_backward": True}):
        model = Deep(layers, width)
        what = "all" if whole else sft.Rows(range(width))
        sft.convert(model, {f"layers.{i}.weight": what for i in range(layers)})
        optimizer = sft.SelectiveAdamW(model.parameters(), 1e-3, **flags)

        def step(model=model, optimizer=optimizer):
            model(torch.ones(2, width)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        step()  # makes the state
        peaks.append(allocated_by(step, tmp_path).most)
    gradient = width * width * 4
    assert peaks[0] >= layers * gradient
    assert peaks[1] < 2.5 * gradient


def test_one_gradient_is_alive_at_a_time():
    model, most = Deep(4, 8), []
    sft.convert(model, {f"layers.{i}.weight": sft.Columns([0, 5]) for i in range(4)})

    def count(_):
        most.append(sum(p.grad is not None for p in model.parameters()))

    hooks = [p.register_post_accumulate_grad_hook(count) for p in trained_parameters(model)]
    optimizer = sft.SelectiveAdamW(model.parameters(), in_backward=True)
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    for hook in hooks:  # or the model, which it reads, lives as long as this process
        hook.remove()
    assert most == [1] * 4
