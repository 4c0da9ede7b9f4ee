"""SelectiveAdamW(optim_bits=8): bytes, who keeps full moments, where it ends, checkpoints.

The rest: test_stored.py.
"""

import functools

import pytest
import torch
from torch import nn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")

BF16 = torch.bfloat16


def stepped(p, steps=1, **settings):
    optimizer = sft.SelectiveAdamW([p], optim_bits=8, **settings)
    for _ in range(steps):
        p.grad = torch.ones_like(p)
        optimizer.step()
    return optimizer


def state_bytes(optimizer):
    return sum(
        t.nbytes
        for state in optimizer.state.values()
        for name, t in state.items()
        if name != "step"
    )


@pytest.mark.parametrize(
    "dtype, settings, beside", [(torch.float32, {}, 0), (BF16, {"correction": True}, 2)]
)
def test_bytes_of_the_moments(dtype, settings, beside):
    p = nn.Parameter(torch.ones(300, 1000, dtype=dtype))
    assert state_bytes(stepped(p, **settings)) / p.numel() == pytest.approx(
        beside + 2 + 8 / 128, rel=1e-4
    )


@pytest.mark.parametrize("count, names", [(4095, {"step", "exp_avg", "exp_avg_sq"}), (4096, None)])
def test_small_tensors_keep_full_moments(count, names):
    p = nn.Parameter(torch.ones(count))
    state = stepped(p).state[p]
    assert state.keys() == (
        names or {"step", "exp_avg", "exp_avg_sq", "exp_avg_absmax", "exp_avg_sq_absmax"}
    )
    assert state["exp_avg"].dtype == (torch.float32 if names else torch.uint8)


@pytest.mark.parametrize(
    "settings", [{}, {"stochastic_rounding": True}, {"correction": True}], ids=str
)
def test_it_ends_near_full_moments(settings):
    """Regression with two layers, a tenth of the columns of which train.

    Losses of the two runs, and how far both came.
    """
    ends = []
    values_dtype = BF16 if settings else None
    for bits in (32, 8):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 64)).to(
            values_dtype or torch.float32
        )
        plan = {
            "0.weight": sft.Columns(range(0, 256, 4)),
            "2.weight": sft.Columns(range(0, 256, 2)),
        }
        sft.convert(model, plan, values_dtype=values_dtype)
        optimizer = sft.SelectiveAdamW(model.parameters(), lr=3e-3, optim_bits=bits, **settings)
        x = torch.randn(128, 256, dtype=values_dtype)
        target = torch.tanh(x[:, :64])
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            loss = (model(x) - target).float().square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert (torch.uint8 in {t.dtype for s in optimizer.state.values() for t in s.values()}) == (
            bits == 8
        )
        ends.append(losses)
    full, eight = ends
    assert full[-1] < full[0] / 4
    assert abs(eight[-1] - full[-1]) < 0.1 * full[-1] + 0.01 * full[0]


def test_checkpoints_go_only_where_there_is_a_place_for_them():
    p, q = (nn.Parameter(torch.ones(5000)) for _ in range(2))
    eight, full = stepped(p), sft.SelectiveAdamW([q])
    q.grad = torch.ones_like(q)
    full.step()
    saved = eight.state_dict(), full.state_dict()
    with pytest.raises(
        ValueError,
        match="state_dict: .*: it holds 'exp_avg.*_absmax', which SelectiveAdamW.*optim_bits=32",
    ):
        full.load_state_dict(saved[0])
    with pytest.raises(
        ValueError,
        match=(
            "state_dict: .*: its exp_avg is torch.float32, and .*optim_bits=8.* keeps torch.uint8"
        ),
    ):
        eight.load_state_dict(saved[1])
    assert (
        eight.state[p]["exp_avg"].dtype == torch.uint8
        and full.state[q]["exp_avg"].dtype == torch.float32
    )


def test_the_estimate_counts_the_bytes():
    pytest.importorskip("transformers")
    from helpers import wide_models

    model, make = (
        wide_models.wide(next(iter(wide_models.MODELS))),
        functools.partial(sft.SelectiveAdamW, optim_bits=8),
    )
    plan = sft.select(model, density=0.05, score="random", structure="columns")
    told = sft.estimate(model, plan, 2, 16, optimizer=make).optimizer_state
    sft.convert(model, plan)
    optimizer = make(p for p in model.parameters() if p.requires_grad)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    assert told == sum(t.nbytes for state in optimizer.state.values() for t in state.values())
    assert any("exp_avg_absmax" in state for state in optimizer.state.values())


@pytest.mark.parametrize("bits", [4, "8", None, True])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match=f"optim_bits: expected 32 or 8, got {bits!r}"):
        sft.SelectiveAdamW([nn.Parameter(torch.ones(3))], optim_bits=bits)


def test_float64_is_refused():
    with pytest.raises(
        ValueError,
        match="optim_bits: .* is torch.float64, and moments in 8 bits go with at most 32 bits",
    ):
        sft.SelectiveAdamW([("w", nn.Parameter(torch.ones(3, dtype=torch.float64)))], optim_bits=8)
