"""Deltas, patches and the base of a model whose selection changed while it trained."""

import pickle

import pytest
import torch
from helpers.small_deltas import bits, net, reverted, same_bits

import sparse_ft as sft
from sparse_ft.deltas import Receiver

NAMES = ("layers.0.weight", "layers.3.weight", "layers.2.weight")
PLANS = (
    (sft.Rows([2, 3]), sft.Entries([0, 5, 9, 140]), sft.Blocks([[0, 1], [2, 1]], (5, 7))),
    (sft.Rows([3, 4]), sft.Entries([5, 11, 12, 130]), sft.Blocks([[0, 0], [2, 1]], (5, 7))),
    (sft.Rows([0, 2]), sft.Entries([0, 1, 2, 3]), sft.Blocks([[1, 1], [2, 0]], (5, 7))),
)


def run(dropped, origin=True, dtype=torch.float32):
    """Train with three plans in turn; yields the model after each step."""
    model = net(dtype)
    sft.convert(model, dict(zip(NAMES, PLANS[0])), origin=origin)
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
    for number, plan in enumerate(PLANS):
        if number:
            sft.reselect(model, optimizer, dict(zip(NAMES, plan)), dropped=dropped)
        for _ in range(2):
            tokens = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(number))
            model.eval()(tokens).float().pow(2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            yield model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropped, origin", [("keep", True), ("keep", False), ("restore", True)])
def test_a_delta_holds_all_that_has_changed(tmp_path, dropped, origin, dtype):
    *_, model = run(dropped, origin, dtype)
    sft.save_delta(model, tmp_path / "delta", origin=origin)
    delta = sft.load_delta(tmp_path / "delta")
    base = sft.apply(net(dtype), delta)  # whose other entries are looked at
    assert same_bits(base, reverted(model))
    assert same_bits(sft.remove(base), net(dtype))
    if origin:
        assert delta.has_origin


@pytest.mark.parametrize("dropped", ["keep", "restore"])
def test_the_base_of_it(dropped):
    for model in run(dropped):
        after = bits(model)
        with sft.disabled(model):
            assert same_bits(reverted(model), net())
        assert same_bits(model, after)


@pytest.mark.parametrize("dropped", ["keep", "restore"])
def test_an_engine_follows(dropped):
    engine, receiver, since = net(), Receiver(), None
    for model in run(dropped):
        since = sft.patches(model, since)
        receiver.apply(engine, pickle.loads(pickle.dumps(since)))
        assert same_bits(engine, reverted(model))
