"""scale_updates: the steps of entries and rows are as long as their factor says."""

import copy
import pickle

import pytest
import torch
from helpers.small_net import PLAN, Net, assert_weights_show_values, loss_of, train
from torch import nn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")


def net():
    torch.manual_seed(0)
    model = Net().double()
    sft.convert(model, PLAN)
    return model


def values_of(model):
    return {m.label: m.values for m in model.modules() if isinstance(m, sft.nn.Selected)}


def after_a_step(factors, lr=1e-2, **settings):
    """{name: how far the values went} in one step, and the model."""
    model = net()
    sft.scale_updates(model, factors)
    before = {name: v.detach().clone() for name, v in values_of(model).items()}
    optimizer = sft.SelectiveAdamW(model.parameters(), lr, **settings)
    train(model, optimizer, 1)
    assert_weights_show_values(model)
    return {name: v.detach() - before[name] for name, v in values_of(model).items()}, model


def test_a_number_a_row_and_every_entry():
    plain, _ = after_a_step({})
    by_row, by_entry = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([2.0, 0.5, 0.0])
    dense = torch.arange(64.0).view(8, 8)
    factors = {
        "first.weight": 0.25,
        "embed.weight": by_row,
        "third.weight": by_entry,
        "second.weight": dense,
    }
    scaled, model = after_a_step(factors)
    want = {
        **plain,
        "first.weight": plain["first.weight"] * 0.25,
        "embed.weight": plain["embed.weight"] * by_row[:, None],
        "third.weight": plain["third.weight"] * by_entry,
        "second.weight": plain["second.weight"] * model.second.selection.gather(dense),
    }
    for name in want:
        torch.testing.assert_close(scaled[name], want[name], rtol=1e-9, atol=1e-12)


def test_one_is_no_factor_and_none_takes_it_away():
    plain, model = after_a_step({"first.weight": 1.0})
    without, _ = after_a_step({})
    torch.testing.assert_close(plain["first.weight"], without["first.weight"], rtol=1e-12, atol=0)
    assert model.first._sparse_ft_state.factor is not None
    sft.scale_updates(model, {"first.weight": None})
    assert model.first._sparse_ft_state.factor is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_a_learning_rate_of_its_own_over_many_steps(dtype):
    """Bias, decay and rounding included: lr times 4 in a group of its own."""
    ends = []
    for scaled in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).to(dtype)
        sft.convert(model, {"0.weight": sft.Rows([1, 5]), "1.weight": sft.Columns([2, 3])})
        groups = [{"params": [model[0].values], "lr": 1e-3}, {"params": [model[1].values]}]
        optimizer = sft.SelectiveAdamW(groups, 4e-3, weight_decay=0.1)
        if scaled:
            optimizer.param_groups[0]["lr"] = 4e-3
            sft.scale_updates(model, {"0.weight": 0.25})
        for seed in range(20):
            torch.manual_seed(seed)
            model(torch.randn(4, 8, dtype=dtype)).float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(sft.revert(model).state_dict())
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-5, atol=1e-6)


def test_it_goes_along_with_copies_devices_and_casts():
    model = net()
    sft.scale_updates(model, {"third.weight": torch.tensor([2.0, 0.5, 0.0])})
    twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).float()
    for twin in twins:
        before = twin.third.values.detach().clone()
        train(twin, sft.SelectiveAdamW(twin.parameters(), 1e-2), 1)
        assert (twin.third.values == before).tolist() == [False, False, True]
    sft.revert(model)
    sft.convert(model, PLAN)
    assert model.third._sparse_ft_state.factor is None


def test_reselect_moves_it_and_entries_that_join_have_none():
    model = net()
    sft.scale_updates(
        model, {"third.weight": torch.tensor([2.0, 0.5, 0.0]), "embed.weight": torch.arange(3.0)}
    )
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2)
    new = {"third.weight": sft.Entries([1, 11, 30]), "embed.weight": sft.Rows([2, 3, 5])}
    sft.reselect(model, optimizer, new)
    assert model.third._sparse_ft_state.factor.tolist() == [1.0, 0.5, 0.0]
    assert model.embed._sparse_ft_state.factor.tolist() == [1.0, 1.0, 2.0]
    sft.reselect(model, optimizer, {"embed.weight": sft.Rows([1, 5])})
    assert model.embed._sparse_ft_state.factor.tolist() == [1.0, 2.0]


def test_steps_in_the_backward_and_8_bit_moments_take_it_too():
    plain, _ = after_a_step({"third.weight": 0.5})
    in_backward, _ = after_a_step({"third.weight": 0.5}, in_backward=True)
    assert all(torch.equal(plain[name], in_backward[name]) for name in plain)


def test_another_optimiser_says_that_it_knows_nothing_of_it():
    model = net()
    sft.scale_updates(model, {"third.weight": 0.5})
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    loss_of(model, 0).backward()
    with pytest.warns(UserWarning, match="third.weight: sft.scale_updates has no effect"):
        optimizer.step()


@pytest.mark.parametrize(
    "name, factor, error, message",
    [
        ("third.bias", 2.0, KeyError, "a parameter group of its own"),
        ("thrid.weight", 2.0, KeyError, "did you mean 'third.weight'"),
        ("third.weight", -1.0, ValueError, "'third.weight': expected finite numbers of at least 0"),
        ("third.weight", float("nan"), ValueError, "'third.weight': expected finite"),
        ("third.weight", torch.ones(4), ValueError, r"\(3,\), \(3,\) or \(4, 8\), got \(4,\)"),
        ("third.weight", torch.ones(3, dtype=torch.bool), TypeError, "expected real numbers"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name, factor, error, message):
    model = net()
    with pytest.raises(error, match=message):
        sft.scale_updates(model, {"first.weight": 2.0, name: factor})
    assert model.first._sparse_ft_state.factor is None
