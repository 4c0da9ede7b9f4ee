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


def run(dropped, origin=True, dtype=torch.float32, plans=PLANS):
    """Train with three plans in turn; yields the model after each step."""
    model = net(dtype)
    sft.convert(model, dict(zip(NAMES, plans[0])), origin=origin)
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
    for number, plan in enumerate(plans):
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


@pytest.mark.parametrize("converted", [False, True], ids=["afresh", "into a model that trained"])
@pytest.mark.parametrize("origin", [True, False])
def test_a_state_dict_tells_what_has_left(tmp_path, origin, converted):
    """Loaded, the model knows its base, and its delta holds all that has changed."""
    *_, model = run("keep", origin)
    torch.save(model.state_dict(), tmp_path / "state")
    state = torch.load(tmp_path / "state")
    other = net(seed=5)
    if converted:
        *_, other = run("keep", origin, plans=(PLANS[1], PLANS[0], PLANS[2]))
    sft.load(other, state)
    assert same_bits(reverted(other), reverted(model))
    assert same_bits(sft.state_dict(other), sft.state_dict(model))
    sft.save_delta(other, tmp_path / "delta", origin=origin)
    assert same_bits(sft.apply(net(), sft.load_delta(tmp_path / "delta")), reverted(model))
    if origin:
        with sft.disabled(other):
            assert same_bits(reverted(other), net())
        after = bits(other)
        sft.restore(other, 0.0)
        assert same_bits(reverted(other), net())
        sft.restore(other, 1.0)
        assert same_bits(bits(other), after)


def test_the_size_of_it_follows_the_entries(tmp_path):
    """8 bytes for where each is that has left, and one number for what it was."""
    *_, model = run("keep")
    state = model.state_dict()
    left = {name: tensor for name, tensor in state.items() if "_left" in name}
    assert {name.partition("_left")[0] for name in left} == set(NAMES)
    for name in NAMES:
        gone = model.get_submodule(name.removesuffix(".weight"))._sparse_ft_state.left
        positions, origin = left[f"{name}_left"], left[f"{name}_left_origin"]
        assert torch.equal(positions, gone.positions) and torch.equal(origin, gone.origin)
    assert not any("_left" in name for name in sft.state_dict(model))


BROKEN = {
    "expected a list of int64": torch.tensor([1.0, 2.0]),
    "expected rising positions": torch.tensor([3, 2]),
    "of a weight with 144 entries": torch.tensor([0, 144]),
    "2 entries, and the origin of": torch.tensor([0, 1]),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_no_run_has_left_is_refused_and_nothing_is_loaded(message):
    *_, model = run("keep")
    state = model.state_dict()
    state["layers.3.weight_left"] = BROKEN[message]
    fresh = net(seed=5)
    before = bits(fresh)
    with pytest.raises(RuntimeError, match=message):
        sft.load(fresh, state)
    assert same_bits(bits(fresh), before)
