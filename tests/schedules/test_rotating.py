"""Rotate: a few units at a time, nothing of the others held."""

import gc
import itertools

import pytest
import torch
from helpers.residual_layers import ResidualLayers

import sparse_ft as sft
from sparse_ft.memory.live import Live

LAYERS, SIZE = 6, 24


def optimizer_of(kind, model):
    trained = [p for p in model.parameters() if p.requires_grad]
    return sft.SelectiveAdamW(trained, lr=1e-3) if kind == "ours" else torch.optim.AdamW(trained)


def train(model, optimizer, schedule, steps):
    """The labels of every step's units."""
    seen = []
    for number in range(steps):
        seen.append(schedule.active)
        x = torch.randn(4, SIZE, generator=torch.Generator().manual_seed(number))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return seen


def state_bytes(optimizer):
    tensors = [t for state in optimizer.state.values() for t in state.values()]
    return sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor) and t.dim())


@pytest.mark.parametrize("kind", ["ours", "torch's"])
@pytest.mark.parametrize("converted", [False, True])
def test_only_the_units_of_a_window_change(kind, converted):
    model = ResidualLayers(LAYERS, SIZE)
    if converted:
        sft.convert(model, sft.select(model, density=0.3, structure="rows", score="random"))
    optimizer = optimizer_of(kind, model)
    units = {str(number): f"layers.{number}.*" for number in range(LAYERS)}
    schedule = sft.Rotate(2, 3, units=units, order="ascending").attach(model, optimizer)
    for window in range(4):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        train(model, optimizer, schedule, 3)
        sft.sync(model)  # another optimiser's steps show at the next forward
        numbers = {(2 * window + i) % LAYERS for i in range(2)}
        moved = {n for n, p in model.named_parameters() if not torch.equal(before[n], p)}
        layers = {int(name.split(".")[1]) for name in moved if name.startswith("layers")}
        assert layers == numbers
        assert any(name.startswith("head") for name in moved) != converted


@pytest.mark.parametrize("kind", ["ours", "torch's"])
def test_memory_does_not_grow_over_ten_windows(kind):
    model = ResidualLayers(LAYERS, SIZE)
    optimizer = optimizer_of(kind, model)
    schedule = sft.Rotate(1, 2, order="random", always="*.bias").attach(model, optimizer)
    train(model, optimizer, schedule, 2)
    held = []
    for _ in range(10):
        optimizer.step()
        train(model, optimizer, schedule, 1)
        held.append(state_bytes(optimizer))
        train(model, optimizer, schedule, 1)
    assert max(held) == held[0]
    others = [p for n, p in model.named_parameters() if "layers" in n and not p.requires_grad]
    assert len(others) == LAYERS - 1
    assert all(p.grad is None and p not in optimizer.state for p in others)
    if kind == "ours":  # nor by what its steps have prepared
        assert not {id(p) for p in others} & optimizer._gathered.prepared.keys()


def test_orders():
    def order(name, steps=8, **settings):
        model = ResidualLayers(LAYERS, SIZE)
        schedule = sft.Rotate(2, 1, order=name, **settings)
        seen = train(model, optimizer_of("ours", model), schedule.attach(model, None), steps)
        return [[int(label.split(".")[1]) for label in labels] for labels in seen]

    assert order("ascending", 4) == [[0, 1], [2, 3], [4, 5], [0, 1]]
    assert order("descending", 3) == [[5, 4], [3, 2], [1, 0]]
    drawn = order("random", 30)
    assert drawn == order("random", 30) != order("random", 30, seed=1)
    assert all(a < b for a, b in drawn)
    assert set(itertools.chain.from_iterable(drawn)) == set(range(LAYERS))


def test_goes_on_where_it_was_saved():
    torch.manual_seed(0)
    whole = ResidualLayers(LAYERS, SIZE)
    optimizer = optimizer_of("torch's", whole)
    schedule = sft.Rotate(2, 3, seed=5).attach(whole, optimizer)
    seen = train(whole, optimizer, schedule, 4)
    state = schedule.state_dict()
    assert state == {"steps": 4}
    other = ResidualLayers(LAYERS, SIZE)
    twin = sft.Rotate(2, 3, seed=5).attach(other, None)
    twin.load_state_dict(state)
    assert twin.active == schedule.active != seen[0]
    flags = [p.requires_grad for p in whole.parameters()]
    assert flags == [p.requires_grad for p in other.parameters()]
    with pytest.raises(ValueError, match="state: expected a number of steps, got None"):
        twin.load_state_dict({})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"n": 0}, "n: expected a positive int, got 0"),
        ({"every": 1.5}, "every: expected a positive int, got 1.5"),
        ({"order": "up"}, "order: .*got 'up'"),
        ({"n": 7}, "n: expected at most 6, the number of units, got 7"),
        ({"units": ["layer.0"]}, "units: 'layer.0' of 'layer.0' matches no parameter"),
        ({"units": ["layers.0.*", "*.weight"]}, "units: 'layers.0.weight' is in"),
    ],
)
def test_what_cannot_rotate_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        sft.Rotate(**{"n": 1, "every": 1, **settings}).attach(ResidualLayers(LAYERS, SIZE), None)


def test_a_model_that_does_not_train_and_a_schedule_without_one():
    model = ResidualLayers(LAYERS, SIZE).requires_grad_(False)
    with pytest.raises(ValueError, match="units: none of their parameters trains"):
        sft.Rotate(1, 1).attach(model, None)
    with pytest.raises(RuntimeError, match="Rotate: it has no model yet; call attach"):
        sft.Rotate(1, 1).step()


def test_allocated_bytes_stay_those_of_the_first_window():
    """Of all tensors that are alive, as the dispatcher sees them made and dropped."""
    model = ResidualLayers(LAYERS, SIZE)
    optimizer = optimizer_of("torch's", model)
    schedule = sft.Rotate(1, 3, order="ascending").attach(model, optimizer)
    held = []
    with Live() as live:
        for parameter in model.parameters():
            live.follow(parameter.untyped_storage())
        for _ in range(11):
            train(model, optimizer, schedule, 3)
            gc.collect()
            held.append(live.bytes)
    assert 0 < held[-1] <= 1.01 * held[0]
