"""Mixtral's and Qwen's grouped experts: same results with gate and up kept once."""

import copy

import pytest
import torch
from helpers.architectures import backward, build

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")

EXPERTS = "model.layers.0.mlp.experts"


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3-MoE"])
@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm", "eager"])
def test_experts(name, implementation):
    model, inputs = build(name)
    model.set_experts_implementation(implementation)
    lean = copy.deepcopy(model)
    report = sft.lean(lean)
    assert EXPERTS in report.changed
    outputs = [backward(m, inputs) for m in (model, lean)]
    assert torch.allclose(*outputs, atol=1e-5)
    for (path, a), (_, b) in zip(model.named_parameters(), lean.named_parameters()):
        assert a.grad is None and b.grad is None or torch.allclose(a.grad, b.grad, atol=1e-5), path
    kept = [
        sum(
            row.bytes
            for row in sft.memory.ledger(m, **inputs).rows
            if row.module.startswith(EXPERTS)
        )
        for m in (model, lean)
    ]
    assert kept[1] < kept[0] or implementation == "eager"
    sft.revert(lean)
    assert "_apply_gate" not in lean.get_submodule(EXPERTS).__dict__
