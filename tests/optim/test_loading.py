"""What a SelectiveAdamW is given to load is looked at as a whole before any of it is loaded."""

import copy
import io

import pytest
import torch
import torch.distributed.checkpoint as dcp
from helpers.small_net import everything
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")


def two(**settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last))
    sft.convert(model, {"0.weight": sft.Columns([1, 2]), "1.weight": "all"})
    return model, sft.SelectiveAdamW(model.named_parameters(), **settings)


def step(model, optimizer):
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    optimizer.step()


def saved(**settings):
    model, optimizer = two(**settings)
    step(model, optimizer)
    return copy.deepcopy(optimizer.state_dict())


def flat(tensor):
    return tensor.flatten()


def broken(what, change):
    """A state_dict whose entry `what` of the first parameter is changed; None: it is taken out."""
    state = saved()
    if change is None:
        del state["state"][0][what]
    else:
        state["state"][0][what] = change(state["state"][0][what])
    return state


BROKEN = {
    "no exp_avg": (lambda: broken("exp_avg", None), r"0.values: its exp_avg is missing.*\(4, 2\)"),
    "no exp_avg_sq": (lambda: broken("exp_avg_sq", None), "0.values: its exp_avg_sq is missing"),
    "no step": (lambda: broken("step", None), "0.values: its step is missing"),
    "shape": (
        lambda: broken("exp_avg", flat),
        r"0.values: its exp_avg has shape \(8,\), expected \(4, 2\)",
    ),
    "transposed": (
        lambda: broken("exp_avg_sq", torch.t),
        r"0.values: its exp_avg_sq has shape \(2, 4\)",
    ),
    "integers": (
        lambda: broken("exp_avg", lambda t: t.long()),
        "0.values: its exp_avg is torch.int64.*keeps torch.float32",
    ),
    "complex": (
        lambda: broken("exp_avg", lambda t: t.cfloat()),
        "0.values: its exp_avg is torch.complex64",
    ),
    "bool": (lambda: broken("exp_avg", lambda t: t > 0), "0.values: its exp_avg is torch.bool"),
    "sparse": (
        lambda: broken("exp_avg", lambda t: t.to_sparse()),
        "0.values: its exp_avg is a torch.sparse_coo tensor",
    ),
    "list": (
        lambda: broken("exp_avg", lambda t: t.tolist()),
        "0.values: its exp_avg is .*expected a dense tensor",
    ),
    "steps": (
        lambda: broken("step", lambda t: torch.ones(2)),
        r"0.values: its step is .*shape \(2,\)",
    ),
    "negative step": (lambda: broken("step", lambda t: -t), "0.values: its step is -1.0"),
    "nan step": (lambda: broken("step", lambda t: t * float("nan")), "0.values: its step is nan"),
    "text": (lambda: broken("step", lambda t: "one"), "0.values: its step is 'one'"),
}


def refused(state, match, error=(ValueError, TypeError), **settings):
    model, optimizer = two(**settings)
    step(model, optimizer)
    before, groups = (
        everything(model, optimizer),
        copy.deepcopy(optimizer.state_dict()["param_groups"]),
    )
    with pytest.raises(error, match=match):
        optimizer.load_state_dict(state)
    after = everything(model, optimizer)
    assert before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )
    assert optimizer.state_dict()["param_groups"] == groups
    step(model, optimizer)


@pytest.mark.parametrize("make, message", BROKEN.values(), ids=BROKEN)
def test_a_broken_state_is_refused_by_name_and_nothing_is_loaded(make, message):
    refused(make(), f"state_dict: {message}")


def test_another_number_of_parameters_or_groups_is_refused():
    state = saved()
    state["param_groups"][0]["params"].pop()
    refused(state, r"state_dict: its groups have \[1\] parameters, and this optimiser's \[2\]")
    state = saved()
    state["param_groups"].append(dict(state["param_groups"][0], params=[2]))
    refused(state, r"its groups have \[2, 1\] parameters")
    state = saved()
    state["state"][7] = state["state"][0]
    refused(state, "state of parameter 7, which none")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"betas": None}, "group 0 has no 'betas'"),
        ({"lr": None}, "group 0 has no 'lr'"),
        ({"amsgrad": True}, "amsgrad=True"),
        ({"betas": (1.0, 0.9)}, "betas: "),
        ({"lr": -1.0}, "lr: "),
        ({"eps": "small"}, "eps: "),
    ],
    ids=str,
)
def test_groups_that_cannot_step_are_refused(changes, message):
    state = saved()
    for name, value in changes.items():
        state["param_groups"][0][name] = value
        if value is None:
            del state["param_groups"][0][name]
    refused(state, message)


def test_the_state_of_another_optimiser():
    model, _ = two()
    trained = [p for p in model.parameters() if p.requires_grad]
    for other, message in (
        (torch.optim.SGD(trained, 0.1, momentum=0.9), "no 'betas'"),
        (torch.optim.AdamW(trained, amsgrad=True), "amsgrad"),
    ):
        step(model, other)
        refused(other.state_dict(), message)
    adamw, (twin, ours) = torch.optim.AdamW(trained, 0.1), two()
    step(model, adamw)
    ours.load_state_dict(adamw.state_dict())
    twin.load_state_dict(model.state_dict())
    step(model, adamw), step(twin, ours)
    for p, q in zip(trained, (p for p in twin.parameters() if p.requires_grad)):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_moments_of_other_widths_and_memory_orders_are_taken():
    """Contiguous ones beside a parameter that lies in channels-last order, fp64, a step that is a
    number.
    """
    state = saved()
    for of_one in state["state"].values():
        of_one.update(exp_avg=of_one["exp_avg"].contiguous().double(), step=int(of_one["step"]))
    (model, optimizer), (other, want) = two(), two()
    optimizer.load_state_dict(state)
    want.load_state_dict(saved())
    step(model, optimizer), step(other, want)
    got, expected = everything(model, optimizer), everything(other, want)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert optimizer.state[model[1].weight]["exp_avg"].stride() == model[1].weight.stride()


def test_what_is_loaded_is_what_was_saved_also_for_parameters_that_never_stepped():
    model, optimizer = two()
    model[0].values.grad = torch.ones_like(model[0].values)
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other, again = two()
    again.load_state_dict(torch.load(file))
    assert len(again.state) == 1 and again.state[other[0].values]["step"] == 1


def test_8_bit_moments_without_their_absmax_are_refused():
    settings = {"optim_bits": 8}
    model = nn.Linear(64, 128)
    optimizer = sft.SelectiveAdamW(model.named_parameters(), **settings)
    step(model, optimizer)
    for name in ("exp_avg_absmax", "exp_avg_sq_absmax"):
        state = copy.deepcopy(optimizer.state_dict())
        del state["state"][0][name]
        with pytest.raises(
            ValueError, match=rf"state_dict: weight: its {name} is missing.*\(64,\)"
        ):
            optimizer.load_state_dict(state)
    state["state"][0]["exp_avg_sq_absmax"] = torch.ones(3)
    with pytest.raises(
        ValueError, match=r"its exp_avg_sq_absmax has shape \(3,\), expected \(64,\)"
    ):
        optimizer.load_state_dict(state)


def test_settings_that_the_saved_groups_lack_are_those_of_this_optimiser():
    model = nn.Linear(4, 4, dtype=torch.bfloat16)
    rounded = sft.SelectiveAdamW(model.parameters(), stochastic_rounding=True, seed=5)
    plain = sft.SelectiveAdamW(model.parameters())
    rounded.load_state_dict(plain.state_dict())
    assert all(group["seed"] == 5 for group in rounded.param_groups)


@pytest.mark.parametrize("name", ["0.weight", "0.bias"])
def test_state_of_another_selection_is_refused(name):
    """Also where the model's own checkpoint is the weight alone, as for biases."""
    plan = {"0.weight": sft.Columns([1, 2]), "0.bias": sft.Entries([0])}
    other_plan = plan | {name: {"0.weight": sft.Columns([1, 3]), "0.bias": sft.Entries([2])}[name]}
    made = []
    for each in (plan, other_plan, dict(plan)):
        model = nn.Sequential(nn.Linear(4, 4))
        sft.convert(model, each)
        made.append((model, sft.SelectiveAdamW(model.named_parameters())))
        step(*made[-1])
    (_, optimizer), (model, other), (_, same) = made
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    state = torch.load(file)
    before = everything(model, other)
    with pytest.raises(
        ValueError, match=r"state_dict: 0\..*values: its state is of another selection"
    ):
        other.load_state_dict(state)
    after = everything(model, other)
    assert all(torch.equal(before[key], after[key]) for key in before)
    same.load_state_dict(state)
    assert "selections" in state["param_groups"][0] and "selections" not in same.param_groups[0]
    torch.optim.AdamW(p for group in same.param_groups for p in group["params"]).load_state_dict(
        state
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_distributed_checkpoints_of_the_state(tmp_path):
    (model, optimizer), (other, again) = two(), two()
    step(model, optimizer)
    state = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    step(other, again)
    into = {"optimizer": get_optimizer_state_dict(other, again)}
    dcp.load(into, checkpoint_id=tmp_path / "dcp", no_dist=True)
    set_optimizer_state_dict(other, again, into["optimizer"])
    for p, q in zip(
        optimizer.param_groups[0]["params"], again.param_groups[0]["params"], strict=True
    ):
        assert all(
            torch.equal(optimizer.state[p][name], again.state[q][name])
            for name in optimizer.state[p]
        )
