"""What a step of SelectiveAdamW keeps and allocates: as the selection, not as the model."""

import json

import pytest
import torch
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


def allocated_by(step, tmp_path):
    """(bytes allocated in all, most at one time) by `step`, as torch's allocator saw it."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = [
        e
        for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        if e["name"] == "[memory]"
    ]
    live = most = total = 0
    for change in (e["args"]["Bytes"] for e in sorted(events, key=lambda e: e["ts"])):
        live, total = live + change, total + max(change, 0)
        most = max(most, live)
    return total, most


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
    assert costs[1][1] < 1024 * 1024 * 4 / 20  # far from one weight


def test_the_measure_sees_an_allocation(tmp_path):
    total, most = allocated_by(lambda: torch.ones(1000).add(1), tmp_path)
    assert 8000 <= most <= total < 8100
