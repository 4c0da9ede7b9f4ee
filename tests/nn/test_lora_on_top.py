"""PEFT's LoRA over a converted model: both train, and merging after `revert` keeps both."""

import pytest
import torch
from torch import nn

import sparse_ft as sft

peft = pytest.importorskip("peft")


def test_lora_wraps_trains_and_merges_after_revert():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    plan = {"0.weight": sft.Columns([1, 5]), "2.weight": sft.Entries([0, 7, 30])}
    sft.convert(base, plan)
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["0", "2"], r=2, init_lora_weights=False))
    for name, parameter in model.named_parameters():
        if name.endswith("values"):
            parameter.requires_grad_(True)  # PEFT freezes everything but its own
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, fused=True)
    x, before = torch.randn(16, 8), {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert {n.rsplit(".", 1)[-1] for n in moved} >= {"values", "weight"}
    out = model(x)
    sft.revert(base)
    torch.testing.assert_close(model(x), out)
    torch.testing.assert_close(model.merge_and_unload()(x), out, atol=1e-5, rtol=1e-5)
