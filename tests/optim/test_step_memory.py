"""What a step of SelectiveAdamW keeps and allocates: as the selection, not as the model."""

import pytest
import torch
from helpers.allocations import allocated_by
from helpers.small_net import trained_parameters
from torch import nn

import sparse_ft as sft


def test_state_for_the_selected_entries_only():
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64))
    sft.convert(model, {"0.weight": sft.Rows([3]), "1.weight": sft.Entries([5, 9, 11])})
    optimizer = sft.SelectiveAdamW(model.parameters())
    model(torch.ones(2, 64)).sum().backward()
    optimizer.step()
    size = sum(
        t.numel() * t.element_size() for state in optimizer.state.values() for t in state.values()
    )
    assert size == (64 + 3) * 2 * 4 + 2 * 4  # exp_avg and exp_avg_sq, and a step each, in fp32
    storages = sum(
        t.untyped_storage().nbytes() for state in optimizer.state.values() for t in state.values()
    )
    assert storages == size and len(optimizer.state) == 2


@pytest.mark.parametrize("kind", ["entries", "blocks"])
@pytest.mark.parametrize("skip_nonfinite", [False, True])
def test_transient_memory_of_a_step_does_not_grow_with_the_model(kind, skip_nonfinite, tmp_path):
    selection = (
        sft.Entries(range(0, 4000, 40)) if kind == "entries" else sft.Blocks([[0, 0], [1, 1]], 8)
    )
    costs = []
    for width in (64, 1024):
        model = nn.Sequential(nn.Linear(width, width), nn.Conv1d(width, width, 1))
        sft.convert(model, {"0.weight": selection, "1.weight": selection})
        optimizer = sft.SelectiveAdamW(model.parameters(), skip_nonfinite=skip_nonfinite)
        for p in trained_parameters(model):
            p.grad = torch.ones_like(p)
        optimizer.step()  # makes the state
        costs.append(allocated_by(optimizer.step, tmp_path))
    assert costs[0] == costs[1]
    assert costs[1].most < 1024 * 1024 * 4 / 20  # far from one weight


def test_the_measure_sees_an_allocation(tmp_path):
    total, most = allocated_by(lambda: torch.ones(1000).add(1), tmp_path)
    assert 8000 <= most <= total < 8100
