"""A step that trains 4 of 64 experts takes their share more, and nothing for the others."""

import pytest
import torch
import transformers
from helpers.mixtures import DECODER

import sparse_ft as sft
from bench.memory import allocator_peak

EXPERTS, CHOSEN = 64, (3, 7, 20, 41)
LAYER = "model.layers.0.mlp.experts."
NAMES = (f"{LAYER}gate_up_proj", f"{LAYER}down_proj")
BESIDE = {"model.norm.weight": "all"}  # trains in every case, so that a backward runs
BELOW = {"model.layers.0.input_layernorm.weight": "all"}  # and it goes down past the experts


def build(implementation, dtype):
    torch.manual_seed(0)
    counts = dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), EXPERTS)
    sizes = {"hidden_size": 128, "moe_intermediate_size": 256, "num_experts_per_tok": 4}
    config = transformers.Qwen3MoeConfig(**{**DECODER, **counts, **sizes})
    model = transformers.Qwen3MoeForCausalLM(config).to(dtype)
    model.set_experts_implementation(implementation)
    return model


def plan_of(model, kind):
    plan = dict(BESIDE)
    for name in NAMES:
        _, rows, columns = model.get_parameter(name).shape
        if kind == "experts":
            plan[name] = sft.Rows([e * rows + row for e in CHOSEN for row in range(rows)])
        elif kind == "blocks":
            down, across = rows // 16, columns // 16
            tiles = [(e * down + i, j) for e in CHOSEN for i in range(down) for j in range(across)]
            plan[name] = sft.Blocks(tiles, 16)
        else:
            plan[name] = entries_of(rows * columns, DENSITIES[kind])
    return plan


DENSITIES = {"half of the entries": 0.5, "a tenth of the entries": 0.1, "few entries": 0.01}


def entries_of(size, density):
    """So many of each chosen expert's entries, drawn at random."""
    generator = torch.Generator().manual_seed(0)
    count = round(density * size)
    drawn = [torch.randperm(size, generator=generator)[:count].sort().values for _ in CHOSEN]
    return sft.Entries(torch.cat([e * size + mine for e, mine in zip(CHOSEN, drawn)]))


def share_of(model, plan):
    """Bytes of the fp32 gradients of what trains of the experts."""
    return 4 * sum(plan[n].nnz(sft.matrix_shape(model, n)) for n in NAMES)


def peak_of_a_step(model, plan):
    tokens = torch.randint(3, 32, (2, 16), generator=torch.Generator().manual_seed(0))
    sft.convert(model, plan)
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-4)

    def step():
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    return allocator_peak(step)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_a_step_takes_the_share_of_the_experts_that_train(implementation, dtype):
    frozen = peak_of_a_step(build(implementation, dtype), BESIDE)
    for kind in ("experts", "blocks", "half of the entries"):
        model = build(implementation, dtype)
        plan = plan_of(model, kind)
        share = share_of(model, plan)
        extra = peak_of_a_step(model, plan) - frozen
        assert extra <= 1.15 * share, f"{kind}: {extra:,} bytes where {share:,} train"


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_so_do_few_entries_where_the_backward_goes_below_the_experts(implementation):
    """Beside a backward that ends above them, its gradients of activations would count."""
    frozen = peak_of_a_step(build(implementation, torch.float32), {**BESIDE, **BELOW})
    for kind in DENSITIES:
        model = build(implementation, torch.float32)
        plan = {**plan_of(model, kind), **BELOW}
        share = share_of(model, plan)
        extra = peak_of_a_step(model, plan) - frozen
        assert extra <= 1.15 * share, f"{kind}: {extra:,} bytes where {share:,} train"


def test_all_experts_take_sixteen_times_as_much():
    """So that the measurement above sees dense gradients where there are some."""
    frozen = peak_of_a_step(build("grouped_mm", torch.float32), BESIDE)
    model = build("grouped_mm", torch.float32)
    entries = sum(model.get_parameter(name).numel() for name in NAMES)
    every = peak_of_a_step(model, {**BESIDE, **dict.fromkeys(NAMES, "all")})
    assert every - frozen > 0.9 * 4 * entries


def test_the_estimate_and_the_report_know_of_it():
    model = build("grouped_mm", torch.float32)
    plan = plan_of(model, "experts")
    some = sft.estimate(model, plan, batch_size=2, sequence_length=16)
    share = share_of(model, plan)
    assert some.gradients == share + 4 * 128
    # a dense gradient would be 16 shares
    assert some.peak < some.weights + 8 * share
    report = sft.convert(model, plan)
    assert report.transient == [] and "each one's gradient by itself" in str(report)
