"""reselect: what stays the same object, what is refused, what an interruption leaves."""

import copy
import pickle

import pytest
import torch
from helpers.interrupting import interrupted
from helpers.reselected import SHAPES, backward, loss_of, masks_of, net, plan_of
from torch import nn

import sparse_ft as sft
from sparse_ft.converted import record_of
from sparse_ft.reselection import Seed

F64 = torch.float64


def training(steps=3, **settings):
    """(model, optimiser) that has taken some steps on `plan_of(0)`."""
    model = net(F64)
    sft.convert(model, plan_of(0), origin=True)
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2, **settings)
    train(model, optimizer, range(steps))
    return model, optimizer


def train(model, optimizer, numbers):
    for number in numbers:
        backward(model, number, F64)
        optimizer.step()
        optimizer.zero_grad()


def held(model, optimizer):
    """Every tensor of the model and the optimiser's state, by name."""
    names = {p: name for name, p in model.named_parameters()}
    found = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p, state in optimizer.state.items():
        found |= {f"{names[p]} {key}": t.clone() for key, t in state.items()}
    return found


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_what_the_model_says_of_itself_follows():
    model, optimizer = training()
    report = sft.reselect(model, optimizer, plan_of(1))
    assert [each.name for each in report] == list(plan_of(1))
    assert report.joined == report.dropped > 0
    assert "embed.weight" in str(report)
    rows = {row.name: row for row in sft.summary(model).rows}
    for name, selection in plan_of(1).items():
        assert rows[name].trainable == selection.nnz(SHAPES[name])
    assert not sft.reselect(model, optimizer, plan_of(1))
    assert str(sft.reselect(model, optimizer, plan_of(1))) == "nothing changed"
    sft.convert(model, plan_of(1), origin=True)  # an equal plan: nothing happens
    loaded = net(F64)
    sft.load(loaded, model.state_dict())
    assert loaded(torch.zeros(1, 2).long()).equal(model(torch.zeros(1, 2).long()))
    trained = {
        name: module.weight.clone()
        for name, module in model.named_modules()
        if hasattr(module, "weight")
    }
    sft.revert(model)
    assert all(torch.equal(model.get_submodule(name).weight, w) for name, w in trained.items())


def test_what_never_trained_stays_and_what_was_restored_is_as_before():
    model, optimizer = training()
    first = net(F64)
    masks = masks_of(first, plan_of(1))
    sft.reselect(model, optimizer, plan_of(1), dropped="restore")
    for name, mask in masks.items():
        now, before = sft_weight(model, name), first.get_parameter(name)
        assert torch.equal(now[~mask], before[~mask])
    train(model, optimizer, range(3, 6))
    sft.reselect(model, optimizer, plan_of(2), dropped="restore")
    sft.restore(model, alpha=0.0)
    sft.revert(model)
    for name, parameter in first.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)


def sft_weight(model, name):
    holder, attribute = name.rsplit(".", 1)
    return getattr(model.get_submodule(holder), attribute).detach()


def test_other_counts_make_other_parameters_in_the_same_places():
    model, optimizer = training()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    before = held(model, optimizer)
    new = {
        "first.weight": sft.Entries(range(0, 24 * 16, 2)),
        "second.weight": sft.Rows([1, 4, 7]),  # another structure
        "embed.weight": sft.Rows([3]),
        "conv.weight": sft.Columns([0, 5]),
    }
    old_masks = masks_of(net(F64), {n: plan_of(0)[n] for n in new})
    report = sft.reselect(model, optimizer, new)
    assert {each.name for each in report} == set(new)
    listed = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in listed] == [id(p) for p in model.parameters() if p.requires_grad]
    assert set(optimizer.state) == set(listed)
    for name, selection in new.items():
        holder = [m for m in model.modules() if getattr(m, "label", None) == name][0]
        state = optimizer.state[holder.values]
        kept = selection.gather(old_masks[name].view(SHAPES[name]).double()).bool()
        assert torch.equal(state["exp_avg"] != 0, kept)
        assert set(state["births"].tolist()) <= {0.0, 3.0}
        assert state["exp_avg"].shape == holder.values.shape
    train(model, optimizer, range(3, 6))
    scheduler.step()
    for name in ("third.weight", "third.values"):
        assert not torch.equal(model.get_parameter(name), before[name])
    assert optimizer.param_groups[0]["lr"] == 5e-3


def test_other_counts_with_steps_in_the_backward():
    model, optimizer = training(in_backward=True)
    sft.reselect(model, optimizer, {"first.weight": sft.Entries(range(0, 24 * 16, 2))})
    before = model.first.values.detach().clone()
    train(model, optimizer, range(3, 5))
    assert not torch.equal(model.first.values, before)
    assert optimizer.state[model.first.values]["step"] == 5


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_reselect_and_go_on_alike(twin):
    model, optimizer = training()
    sft.reselect(model, optimizer, plan_of(1))
    train(model, optimizer, range(3, 5))
    other, copied = twin((model, optimizer))
    for one, its in ((model, optimizer), (other, copied)):
        sft.reselect(one, its, plan_of(2))
        train(one, its, range(5, 8))
    assert same(held(model, optimizer), held(other, copied))


def test_more_ages_than_a_byte_tells_apart():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40, bias=False))
    sft.convert(model, {"0.weight": sft.Entries(range(800))})
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-3)
    merged = 0
    for start in range(300):
        model[0].values.grad = torch.ones(800)
        optimizer.step()
        # two entries leave and join at each step
        chosen = torch.arange(2 * start + 2, 2 * start + 802) % 1600
        report = sft.reselect(model, optimizer, {"0.weight": sft.Entries(chosen.sort().values)})
        merged += report[0].merged
    state = optimizer.state[model[0].values]
    assert state["births"].numel() == 256 and merged > 0
    assert "ages were given to their neighbours" in str(report)
    births = state["births"][state["generation"].long()]
    joined = (torch.arange(800) // 2 - 99).clamp(min=0).float()  # by order of joining
    order = births[(model[0].selection.index.long() - 600).remainder(1600).argsort()]
    assert (order.diff() >= 0).all() and (order - joined).abs().max() <= 60


def test_seeded_entries_begin_with_what_was_collected():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 10, bias=False)).double()
    sft.convert(model, {"0.weight": sft.Entries(range(20))})
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2, weight_decay=0.0)
    for _ in range(4):
        model[0].values.grad = torch.randn(20).double()
        optimizer.step()
    seed = Seed(torch.tensor([25, 30]), torch.tensor([0.5, -0.25]), torch.tensor([0.4, 0.2]), 5)
    chosen = sft.Entries([*range(10), *range(24, 34)])
    sft.reselect(model, optimizer, {"0.weight": chosen}, seeds={"0.weight": seed})
    state = optimizer.state[model[0].values]
    births = state["births"][state["generation"].long()].tolist()
    at = {place: i for i, place in enumerate(chosen.index.tolist())}
    assert [births[at[p]] for p in (0, 24, 25, 30)] == [0.0, 4.0, -1.0, -1.0]
    # with a gradient that is the mean, the corrected moments are the means
    value = model[0].values.detach().clone()
    model[0].values.grad = torch.zeros(20).double()
    model[0].values.grad[at[25]] = 0.5
    optimizer.step()
    m = (0.5 * (1 - 0.9**5) * 0.9 + 0.1 * 0.5) / (1 - 0.9**6)
    v = (0.4 * (1 - 0.999**5) * 0.999 + 0.001 * 0.25) / (1 - 0.999**6)
    assert m == pytest.approx(0.5)
    moved = (value - model[0].values)[at[25]].item()
    assert moved == pytest.approx(1e-2 * m / v**0.5, rel=1e-6)


def test_an_entry_that_joins_late_moves_by_one_learning_rate():
    """With the tensor's age by up to 6.6 of them."""
    most = {}
    for age in ("entry", "tensor"):
        model = nn.Sequential(nn.Linear(4, 4, bias=False)).double()
        sft.convert(model, {"0.weight": sft.Entries(range(8))})
        optimizer = sft.SelectiveAdamW(model.parameters(), 1.0, weight_decay=0.0)
        model[0].values.grad = torch.ones(8).double()
        optimizer.step()
        optimizer.state[model[0].values]["step"].fill_(10_000)
        chosen = sft.Entries(range(2, 10))
        sft.reselect(model, optimizer, {"0.weight": chosen}, age=age)
        moves = []
        for _ in range(20):
            before = model[0].values.detach().clone()
            model[0].values.grad = torch.ones(8).double()
            optimizer.step()
            moves.append((before - model[0].values)[-2:].max().item())
        most[age] = max(moves)
    assert most["entry"] == pytest.approx(1.0, abs=1e-6)
    assert most["tensor"] > 5


def test_another_optimiser_keeps_what_it_can():
    model = net(torch.float32)
    sft.convert(model, plan_of(0))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for number in range(3):
        loss_of(model, number, torch.float32).backward()
        optimizer.step()
        optimizer.zero_grad()
    old = dict(
        zip(
            model.first.selection.index.tolist(),
            optimizer.state[model.first.values]["exp_avg"].tolist(),
        )
    )
    sft.reselect(model, optimizer, plan_of(1), age="tensor")
    new = dict(
        zip(
            model.first.selection.index.tolist(),
            optimizer.state[model.first.values]["exp_avg"].tolist(),
        )
    )
    assert new == {place: old.get(place, 0.0) for place in new}
    loss_of(model, 3, torch.float32).backward()
    optimizer.step()
    assert sft.reselect(model, None, plan_of(2))


def adafactor_like(model):
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    optimizer.state[model.second.values]["row"] = torch.zeros(4)
    return optimizer


REFUSALS = {
    "no selection": (
        {"second.bias": sft.Entries([0])}, {}, KeyError, "'second.bias' has no selected entries"
    ),
    "a typo": ({"firts.weight": sft.Entries([0])}, {}, KeyError, "did you mean 'first.weight'"),
    "whole": ({"first.weight": "all"}, {}, ValueError, "is to train whole"),
    "outside": ({"first.weight": sft.Entries([24 * 16])}, {}, IndexError, "'first.weight': index"),
    "embedding": ({"embed.weight": sft.Entries([0])}, {}, ValueError, "an embedding trains rows"),
    "dropped": (plan_of(1), {"dropped": "gone"}, ValueError, "dropped: .*'gone'"),
    "age": (plan_of(1), {"age": "model"}, ValueError, "age: .*'model'"),
    "seeds": (
        {"first.weight": sft.Entries([0])},
        {"seeds": {"second.bias": None}},
        ValueError,
        "seeds: 'second.bias' does not change",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSALS)
def test_what_does_not_fit_is_refused_by_name_and_changes_nothing(what):
    plan, settings, error, message = REFUSALS[what]
    model, optimizer = training()
    before = held(model, optimizer)
    with pytest.raises(error, match=message):
        sft.reselect(model, optimizer, {**plan_of(1), **plan}, **settings)
    assert same(held(model, optimizer), before)


NAN = float("nan")
# What a sound seed has instead: that, of entries 3 and 7 of a matrix of 24 x 16.
WRONG_SEEDS = {
    "no steps": (dict(steps=0), ValueError, "expected steps of at least 1, got 0"),
    "half a step": (dict(steps=2.5), TypeError, "expected a number of steps, got 2.5"),
    "a list": (dict(index=[3, 7]), TypeError, "expected a tensor as index, got a list"),
    "of floats": (dict(index=torch.tensor([3.0, 7.0])), TypeError, "positions in torch.int64"),
    "not sorted": (dict(index=torch.tensor([7, 3])), ValueError, "not sorted and unique"),
    "outside": (dict(index=torch.tensor([3, 384])), ValueError, "from 0 to 383, got 3 to 384"),
    "below": (dict(index=torch.tensor([-1, 3])), ValueError, "from 0 to 383, got -1 to 3"),
    "not finite": (dict(grad=torch.tensor([1.0, NAN])), ValueError, "gradients hold inf or NaN"),
    "a square below 0": (dict(grad_squared=torch.tensor([1.0, -1.0])), ValueError, "below 0"),
    "no square": (dict(grad_squared=torch.tensor([1.0, NAN])), ValueError, "its squares hold"),
}


@pytest.mark.parametrize("what", WRONG_SEEDS)
def test_a_seed_that_would_spoil_what_joins_is_refused_by_name_and_changes_nothing(what):
    changed, error, message = WRONG_SEEDS[what]
    sound = dict(index=torch.tensor([3, 7]), grad=torch.ones(2), grad_squared=torch.ones(2))
    model, optimizer = training()
    before = held(model, optimizer)
    seeds = {"first.weight": Seed(**{**sound, "steps": 3, **changed})}
    with pytest.raises(error, match=f"seeds: 'first.weight': .*{message}"):
        sft.reselect(model, optimizer, plan_of(1), seeds=seeds)
    assert same(held(model, optimizer), before)


def test_models_and_optimisers_that_do_not_fit_are_refused_by_name():
    model, optimizer = training()
    with pytest.raises(TypeError, match="model: expected an nn.Module, got None"):
        sft.reselect(None, optimizer, plan_of(1))
    with pytest.raises(TypeError, match="optimizer: expected an optimiser or None, got 'adam'"):
        sft.reselect(model, "adam", plan_of(1))
    with pytest.raises(TypeError, match="seeds: 'first.weight': expected a Seed, got 3"):
        sft.reselect(model, optimizer, plan_of(1), seeds={"first.weight": 3})
    with pytest.raises(ValueError, match="model: it is not converted"):
        sft.reselect(net(F64), optimizer, plan_of(1))
    with pytest.raises(ValueError, match="optimizer: it does not hold the values of"):
        sft.reselect(model, torch.optim.SGD(net(F64).parameters(), 1.0), plan_of(1), age="tensor")
    with pytest.raises(ValueError, match="age: SGD has one age a parameter"):
        sft.reselect(model, torch.optim.SGD(model.parameters(), 1.0), plan_of(1))
    with pytest.raises(TypeError, match=r"optimizer: its state 'row' has shape \(4,\)"):
        sft.reselect(model, adafactor_like(model), plan_of(1), age="tensor")
    plain = net(F64)
    sft.convert(plain, plan_of(0))
    with pytest.raises(ValueError, match="the origin of 'embed.weight' was not kept"):
        sft.reselect(plain, None, plan_of(1), dropped="restore")
    sft.restore(model, alpha=0.5)
    with pytest.raises(ValueError, match="between its origin and what was trained"):
        sft.reselect(model, optimizer, plan_of(1))


def test_a_backward_that_was_pending_raises():
    model, optimizer = training()
    loss = loss_of(model, 5, F64)
    sft.reselect(model, optimizer, plan_of(1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("line", range(1, 1200, 13))
def test_interrupted_anywhere_each_parameter_is_before_or_after(line):
    model, optimizer = training()
    old, new = plan_of(0), plan_of(1)
    done, its = training()
    sft.reselect(done, its, new)
    before, after = held(model, optimizer), held(done, its)
    random = torch.get_rng_state()
    ours = interrupted(
        lambda: sft.reselect(model, optimizer, new),
        line,
        lambda name: "sparse_ft/reselection" in name or "sparse_ft/optim" in name,
    )
    assert torch.equal(random, torch.get_rng_state()) and torch.is_grad_enabled()
    if not ours:
        return
    now = held(model, optimizer)
    for module in model.modules():
        if not isinstance(module, sft.nn.Selected):
            continue
        name, selection = module.label, module.selection
        assert selection in (old[name], new[name])
        assert record_of(model).plan[name] == selection
        want = before if selection == old[name] else after
        key = next(n for n, p in model.named_parameters() if p is module.values)
        mine = {n: t for n, t in now.items() if n.split(" ")[0] == key}
        assert same(mine, {n: want[n] for n in mine})
    sft.reselect(model, optimizer, new)
    assert same(held(model, optimizer), after)
    train(model, optimizer, range(3, 5))
    train(done, its, range(3, 5))
    assert same(held(model, optimizer), held(done, its))
