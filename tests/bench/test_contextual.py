"""The table of approximate steps beside the exact one."""

import pytest
import torch

transformers = pytest.importorskip("transformers")
import sparse_ft as sft  # noqa: E402
from bench import contextual  # noqa: E402


def small():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=6,
        num_attention_heads=2,
        vocab_size=32,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config).train()


def test_each_variant_beside_the_exact_step():
    model, ids = small(), torch.arange(64).view(4, 16) % 32
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = contextual.measured(model, ids, rounds=2)
    assert list(found) == list(contextual.VARIANTS)
    loss, exact, _ = found["exact"]
    sft.convert(model, contextual.plan_of(model))
    plain = model(input_ids=ids, labels=ids).loss
    plain.backward()
    assert loss == pytest.approx(plain.item(), rel=1e-6)
    dense = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(exact, dense, rtol=1e-4, atol=1e-7)
    errors = [(g - exact).norm().item() for _, g, _ in found.values()]
    assert errors[0] == 0 < errors[1] < errors[2] < errors[3]
    sft.revert(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    rows = contextual.table(found)
    assert rows[1][1:] == (f"{loss:.2f}", "1.00", "0.00", rows[1][4], "1.00")
    assert contextual.markdown(rows).count("\n") == len(contextual.VARIANTS) + 1
