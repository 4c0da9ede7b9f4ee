"""Origins: kept, moved, copied, saved, loaded, counted; and the slider between them and what was
trained.
"""

import copy
import fractions
import io
import pickle

import numpy
import pytest
import torch
from torch import nn

import sparse_ft as sft
from sparse_ft import restoring
from sparse_ft.nn import origin_of
from sparse_ft.nn.origin import origins_in

pytestmark = pytest.mark.usefixtures("made_on_device")

PLAN = {
    "0.weight": sft.Rows([0, 3]),
    "0.bias": sft.Entries([1]),
    "2.weight": sft.Columns([1, 5]),
    "3.weight": "all",
    "4.weight": sft.Blocks([[0, 1]], (2, 3)),
    "4.bias": "all",
}
NAMES = list(PLAN)


def net(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 6), nn.Tanh(), nn.Conv1d(6, 4, 3), nn.LayerNorm(2), nn.Linear(2, 3)
    )
    model[2] = nn.Linear(6, 8)
    model[3] = nn.LayerNorm(8)
    model[4] = nn.Linear(8, 3)
    return model.to(dtype)


def weights(model):
    return {name: tensor.clone() for name, tensor in sft.state_dict(model).items()}


def same(got, want):
    return got.keys() == want.keys() and all(
        got[name].dtype == want[name].dtype and torch.equal(got[name], want[name]) for name in want
    )


def train(model, steps=3, optimizer=None):
    dtype = model[3].weight.dtype
    x = torch.linspace(-1, 1, 16 * 8).view(16, 8).sin().to(dtype)
    optimizer = optimizer or sft.SelectiveAdamW(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).float().square().mean().backward()
        optimizer.step()
    return optimizer


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float64], ids=str)
def trained(request):
    """(a converted model that was trained, its weights before, its weights after)."""
    model = net(request.param)
    before = weights(model)
    sft.convert(model, PLAN, origin=True)
    train(model)
    after = weights(model)
    assert not same(after, before)
    return model, before, after


def test_zero_is_the_base_and_one_the_trained_model_bit_for_bit(trained):
    model, before, after = trained
    values = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    for alpha in (0.0, 0.25, 1, 0, 1.0):
        assert sft.restore(model, alpha) is model
        if alpha in (0, 1):
            assert same(weights(model), before if alpha == 0 else after)
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert torch.equal(p, values[name])


def test_what_is_between_is_interpolated(trained):
    model, before, _ = trained
    values = model[0].values.detach().clone()
    base = origin_of(model[0].values)
    sft.restore(model, 0.25)
    want = torch.lerp(base.to(values.dtype), values, 0.25)
    assert torch.equal(model[0].values, want)
    assert torch.equal(model[0].weight[[0, 3]], want.to(base.dtype))
    sft.restore(model, 0.75)
    assert torch.equal(model[0].values, torch.lerp(base.to(values.dtype), values, 0.75))


@pytest.mark.parametrize("kind", [numpy.float32, numpy.float64, fractions.Fraction, int])
def test_any_real_number_is_an_alpha(kind, trained):
    model, before, after = trained
    wanted = copy.deepcopy(model)
    for number in (0, 1, 2):
        sft.restore(wanted, float(number))
        sft.restore(model, kind(number))
        assert same(weights(model), weights(wanted))
    sft.restore(model, {"0.weight": kind(0)})
    assert torch.equal(weights(model)["0.weight"], before["0.weight"])


def test_parameters_by_name(trained):
    model, before, after = trained
    sft.restore(model, {"0.weight": 0.0, "3.weight": 0})
    mixed = {**after, "0.weight": before["0.weight"], "3.weight": before["3.weight"]}
    assert same(weights(model), mixed)
    sft.restore(model, {"3.weight": 1})
    assert same(weights(model), {**after, "0.weight": before["0.weight"]})
    sft.restore(model, 1)
    assert same(weights(model), after)


@pytest.mark.parametrize("optimizer", ["ours", "torch"])
def test_training_goes_on_from_the_trained_values(optimizer):
    """As if nobody had looked at the base in between."""

    def trained(looks):
        model = net()
        sft.convert(model, PLAN, origin=True)
        parameters = [p for p in model.parameters() if p.requires_grad]
        cls = sft.SelectiveAdamW if optimizer == "ours" else torch.optim.AdamW
        opt = cls(parameters, lr=0.05)
        train(model, 2, opt)
        if looks:
            sft.restore(model)
            model(torch.ones(1, 8))
            sft.restore(model, 1)
        train(model, 2, opt)
        return weights(model)

    assert same(trained(True), trained(False))


def test_trained_on_from_elsewhere_it_says_so(trained):
    model = trained[0]
    sft.restore(model, 0.5)
    train(model, 1)
    after = weights(model)
    with pytest.warns(UserWarning, match="0.weight, 0.bias, 2.weight and 3 more: changed"):
        sft.restore(model, 0)
    assert same(weights(model), trained[1])
    sft.restore(model, 1)
    assert same(weights(model), after)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.0])
def test_copies_have_origins_of_their_own(trained, copied, alpha):
    model, before, after = trained
    sft.restore(model, alpha)
    shown = weights(model)
    twin = copied(model)
    for p, q in zip(model.parameters(), twin.parameters()):
        if p.requires_grad:
            assert torch.equal(origin_of(p), origin_of(q))
            assert origin_of(p).data_ptr() != origin_of(q).data_ptr()
    sft.restore(twin, 0)
    assert same(weights(twin), before)
    sft.restore(twin, 1)
    assert same(weights(twin), after)
    assert same(weights(model), shown)


def test_origins_follow_casts():
    model = net(torch.bfloat16)
    before = weights(model)
    sft.convert(model, PLAN, origin=True)
    train(model)
    after = weights(model)
    sft.restore(model, 0.5)
    model.double()
    for p in model.parameters():
        if p.requires_grad:
            assert origin_of(p).dtype == torch.float64 and origin_of(p).shape == p.shape
    sft.restore(model, 0)
    assert all(torch.equal(weights(model)[name], before[name].double()) for name in before)
    model.to(torch.bfloat16)
    sft.restore(model, 1)
    assert same(weights(model), after)


def test_a_meta_device_does_not_take_the_numbers(device):
    model = net()
    sft.convert(model, PLAN, origin=True)
    kept = {known.label: known.origin.clone() for known, _ in origins_in(model)}
    assert kept.keys() == PLAN.keys()
    model.to("meta").to_empty(device=device)
    for known, parameter in origins_in(model):
        assert torch.equal(known.origin, kept[known.label])
        assert origin_of(parameter) is known.origin


def test_saved_and_loaded(trained):
    model, before, after = trained
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=False)
    assert {f"{name}_origin" for name in NAMES} <= state.keys()
    other = net(before["0.bias"].dtype)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)  # another base: the checkpoint's origins count
    sft.load(other, state)
    assert same(weights(other), after)
    sft.restore(other)
    assert same(
        {n: weights(other)[n] for n in ("3.weight", "4.bias")},
        {n: before[n] for n in ("3.weight", "4.bias")},
    )
    assert torch.equal(other[0].weight[[0, 3]], before["0.weight"][[0, 3]])
    sft.restore(other, 1)
    assert same(weights(other), after)
    assert not any(name.endswith("_origin") for name in sft.state_dict(model))


def test_a_checkpoint_without_origins_leaves_them(trained):
    model, before, after = trained
    state = model.state_dict()
    bare = type(state)((n, t.clone()) for n, t in state.items() if not n.endswith("_origin"))
    bare._metadata = state._metadata
    sft.restore(model)
    sft.load(model, bare)
    assert same(weights(model), after)
    with pytest.warns(UserWarning, match="changed since"):
        sft.restore(model)
    assert same(weights(model), before)


def test_origins_without_a_place_are_named(trained):
    model, *_ = trained
    state = model.state_dict()
    other = net(model[3].weight.dtype)
    sft.convert(other, PLAN)
    with pytest.raises(RuntimeError, match="convert with origin=True first"):
        sft.load(other, state)
    state["0.weight_origin"] = state["0.weight_origin"][:1]
    with pytest.raises(RuntimeError, match="0.weight_origin.*has shape"):
        model.load_state_dict(state)


def test_refused_by_name():
    model = net()
    with pytest.raises(ValueError, match="it was not converted"):
        sft.restore(model)
    sft.convert(model, PLAN)
    with pytest.raises(ValueError, match="pretrained values were not kept; sft.convert"):
        sft.restore(model)
    with pytest.raises(ValueError, match="origin: the model was converted with False, got True"):
        sft.convert(model, PLAN, origin=True)
    assert all(origin_of(p) is None for p in model.parameters())
    sft.revert(model)
    sft.convert(model, PLAN, origin=True)
    sft.convert(model, PLAN, origin=True)
    train(model)
    after = weights(model)
    with pytest.raises(KeyError, match="'0.wieght' has no origin.*did you mean '0.weight'"):
        sft.restore(model, {"0.bias": 0, "0.wieght": 0})
    for bad in (float("nan"), float("inf"), "half", None, True):
        with pytest.raises(ValueError, match="alpha: expected a finite number for '0.weight'"):
            sft.restore(model, bad)
    assert same(weights(model), after)


@pytest.mark.parametrize("at", range(len(NAMES) + 1))
def test_an_interrupt_leaves_all_or_nothing(trained, at, monkeypatch):
    model, before, after = trained
    sft.restore(model, 0.5)
    shown = weights(model)
    write, calls = restoring._write, []

    def interrupted(*args):
        if args != (model,):
            write(*args)
        calls.append(1)
        if len(calls) == at + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(restoring, "_write", interrupted)
    monkeypatch.setattr(restoring, "sync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sft.restore(model, 0)
    monkeypatch.undo()
    assert same(weights(model), shown)
    sft.restore(model, 1)
    assert same(weights(model), after)


@pytest.mark.parametrize("dropped", ["keep", "restore"])
def test_what_a_reselection_dropped_moves_too(trained, dropped):
    model, before, _ = trained
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=0.05)
    train(model, 2, optimizer)
    plan = {"0.weight": sft.Rows([3, 4]), "2.weight": sft.Columns([0, 5])}
    sft.reselect(model, optimizer, plan, dropped=dropped)
    train(model, 2, optimizer)
    after = weights(model)
    assert torch.equal(after["0.weight"][0], before["0.weight"][0]) == (dropped == "restore")
    sft.restore(model)
    assert same(weights(model), before)
    sft.restore(model, 0.5)
    half = weights(model)["0.weight"][0]
    assert torch.equal(half, torch.lerp(before["0.weight"][0], after["0.weight"][0], 0.5))
    twin = copy.deepcopy(model)
    for each in (model, twin):
        sft.restore(each, 1)
        assert same(weights(each), after)
    sft.restore(model)
    sft.revert(model)
    assert same(dict(model.state_dict()), before)


def test_revert_keeps_what_is_shown_and_forgets_the_origin(trained):
    model, before, _ = trained
    values = model[0].values
    sft.restore(model)
    sft.revert(model)
    assert same(dict(model.state_dict()), before)
    assert origin_of(values) is None and origin_of(model[3].weight) is None
    assert not any(name.startswith("_sparse_ft") for name in vars(model))


def test_counted():
    model = net()
    x = torch.zeros(2, 8)
    plain, kept = (
        sft.estimate(model, PLAN, inputs={"input": x}, origin=origin) for origin in (False, True)
    )
    report = sft.convert(model, PLAN, origin=True)
    size = sum(origin_of(p).nbytes for p in model.parameters() if p.requires_grad)
    assert kept.origin == size and plain.origin == 0
    assert kept.peak - plain.peak == size and kept[:6] == plain[:6]
    assert "their pretrained values" in str(kept) and "their pretrained values" not in str(plain)
    assert report.origin == sft.summary(model).origin == size
    assert f"their pretrained values are kept: {size} B" in str(report)
    held = sft.memory.ledger(model, x).total
    sft.revert(model)
    sft.convert(model, PLAN)
    assert sft.memory.ledger(model, x).total == held
