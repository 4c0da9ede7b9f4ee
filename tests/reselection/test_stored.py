"""What reselect makes of values and moments that are kept in fewer bits."""

import pytest
import torch
from torch import nn

import sparse_ft as sft
from sparse_ft.ops._eight_bit import BLOCK, dequantize
from sparse_ft.optim import storage

STORED = {
    "plain": {},
    "by chance": {"stochastic_rounding": True},
    "corrected": {"correction": True},
    "8 bits": {"optim_bits": 8},
    "8 bits by chance": {"optim_bits": 8, "stochastic_rounding": True},
    "8 bits corrected": {"optim_bits": 8, "correction": True},
}
COUNT, SHAPE = 300, (40, 30)


@pytest.fixture(autouse=True)
def no_tensor_is_too_small(monkeypatch):
    monkeypatch.setattr(storage, "EIGHT_BIT_LEAST", 1)


def trained(stored, seed=0):
    """(model, optimiser, what it draws gradients with), after some steps."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(SHAPE[1], SHAPE[0], bias=False)).bfloat16()
    chosen = torch.randperm(SHAPE[0] * SHAPE[1])[:COUNT].sort().values
    sft.convert(model, {"0.weight": sft.Entries(chosen)}, values_dtype=torch.bfloat16)
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2, **stored)
    steps(model, optimizer, 5)
    return model, optimizer


def steps(model, optimizer, count):
    for _ in range(count):
        model[0].values.grad = torch.randn(COUNT).bfloat16()
        optimizer.step()


def by_place(model, optimizer):
    """{name: {place in the weight: number}} of all that is kept of an entry."""
    state, places = optimizer.state[model[0].values], model[0].selection.index.tolist()
    kept = {"value": model[0].values, **{n: t for n, t in state.items() if t.numel() == COUNT}}
    for name, is_signed in (("exp_avg", True), ("exp_avg_sq", False)):
        if f"{name}_absmax" in state:
            kept[name] = dequantize(state[name], state[f"{name}_absmax"], is_signed)
    births = state.get("births", torch.zeros(1))
    age = state["step"] - births[state.get("generation", torch.zeros(COUNT)).long()]
    kept.pop("generation", None)
    kept["age"] = age
    return {name: dict(zip(places, tensor.tolist())) for name, tensor in kept.items()}


@pytest.mark.parametrize("stored", STORED)
def test_kept_entries_keep_their_bits_and_those_that_join_begin(stored):
    model, optimizer = trained(STORED[stored])
    weight = model[0].weight.detach().clone()
    before = by_place(model, optimizer)
    chosen = torch.randperm(SHAPE[0] * SHAPE[1])[:COUNT].sort().values
    report = sft.reselect(model, optimizer, {"0.weight": sft.Entries(chosen)})
    after = by_place(model, optimizer)
    kept = before["value"].keys() & after["value"].keys()
    joined = after["value"].keys() - before["value"].keys()
    assert (report.kept, report.joined) == (len(kept), len(joined)) and joined and kept
    assert before.keys() == after.keys()
    for name in after:
        is_code = name.startswith("exp_avg") and "8 bits" in stored
        for place in kept:
            if not is_code:
                assert after[name][place] == before[name][place], name
        if name == "value":
            assert all(after[name][p] == weight.view(-1)[p].item() for p in joined)
        else:
            assert not any(after[name][place] for place in joined)
    assert torch.equal(model[0].weight, weight)
    assert bool(report[0].rounded) == ("8 bits" in stored)
    assert ("rounded by at most" in str(report)) == ("8 bits" in stored)
    steps(model, optimizer, 3)
    assert torch.equal(model[0].selection.gather(model[0].weight), model[0].values)


def test_the_report_says_what_other_blocks_of_codes_round():
    model, optimizer = trained(STORED["8 bits"])
    before = by_place(model, optimizer)
    chosen = torch.randperm(SHAPE[0] * SHAPE[1])[:COUNT].sort().values
    report = sft.reselect(model, optimizer, {"0.weight": sft.Entries(chosen)})
    state, after = optimizer.state[model[0].values], by_place(model, optimizer)
    worst = 0.0
    for name in ("exp_avg", "exp_avg_sq"):
        for i, place in enumerate(model[0].selection.index.tolist()):
            error = abs(after[name][place] - before[name].get(place, 0.0))
            worst = max(worst, error / state[f"{name}_absmax"][i // BLOCK].item())
    assert worst == pytest.approx(report[0].rounded, rel=1e-5) and worst < 0.05
