"""sft.load: a state_dict brings its plan along."""

import pytest
import safetensors.torch
import torch
from helpers.checkpoints import (
    build,
    converted,
    forward,
    plan,
    same,
    snapshot,
    through_torch,
    trained,
)

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")


@pytest.mark.parametrize("values_dtype", [None, torch.bfloat16])
def test_load_brings_the_plan_along(values_dtype):
    model, optimizer = trained(torch.bfloat16, values_dtype=values_dtype)
    state = through_torch([model.state_dict(), optimizer.state_dict()])
    other = build(torch.bfloat16, 1)
    report = sft.load(other, state[0])
    assert str(report) == str(sft.summary(model))
    assert same(snapshot(other), snapshot(model))
    assert other[0]["linear"].values.dtype == (values_dtype or torch.float32)
    again = sft.SelectiveAdamW(other.parameters(), lr=1.0)
    again.load_state_dict(state[1])
    for m, o in (model, optimizer), (other, again):
        forward(m).float().square().mean().backward()
        o.step()
    assert same(snapshot(other), snapshot(model))


def test_load_into_a_model_that_is_converted():
    model, _ = trained()
    state = through_torch(model.state_dict())
    other = converted()
    values = other[0]["linear"].values
    sft.load(other, state)
    assert other[0]["linear"].values is values and same(snapshot(other), snapshot(model))
    wrong = converted(1)
    before = snapshot(wrong)
    with pytest.raises(ValueError, match="model: converted with another plan.*sft.revert"):
        sft.load(wrong, state)
    assert same(snapshot(wrong), before)
    sft.load(sft.revert(wrong), state)
    assert same(snapshot(wrong), snapshot(model))


def test_load_of_a_plain_checkpoint_gathers_values():
    plain = build(seed=5)
    other = converted()
    sft.load(other, plain.state_dict())
    assert torch.equal(other[0]["linear"].values, plain[0]["linear"].weight[:, [0, 2]])
    untouched = build(seed=6)
    sft.load(untouched, plain.state_dict())
    assert same(untouched.state_dict(), plain.state_dict())


def break_it(state, how):
    if how == "missing":
        del state["0.conv.weight"]
    elif how == "unexpected":
        state["0.conv.scale"] = torch.zeros(1)
    elif how == "shape":
        state["0.conv.weight"] = torch.zeros(4, 5, 7)
    else:
        state["0.linear.values"] = state["0.linear.values"] + 1
    return state


@pytest.mark.parametrize("how", ["missing", "unexpected", "shape", "edited"])
@pytest.mark.parametrize("is_converted", [False, True])
def test_a_load_that_fails_leaves_the_model_as_it_was(how, is_converted):
    state = break_it(trained()[0].state_dict(), how)
    other = converted() if is_converted else build(seed=1)
    before, flags = snapshot(other), [p.requires_grad for p in other.parameters()]
    with pytest.raises(RuntimeError, match="state_dict: .*0.(conv|linear)"):
        sft.load(other, state)
    assert same(snapshot(other), before) and [p.requires_grad for p in other.parameters()] == flags
    assert isinstance(other[0]["linear"], sft.nn.SelectiveLinear) == is_converted


def test_a_failed_load_leaves_a_lean_model_lean():
    other = build(seed=1)
    sft.lean(other)
    with pytest.raises(RuntimeError):
        sft.load(other, break_it(trained()[0].state_dict(), "missing"))
    with pytest.raises(ValueError, match="not converted"):
        sft.revert(sft.revert(other))


def test_values_whose_plan_is_lost_say_so(tmp_path):
    model, _ = trained()
    safetensors.torch.save_file(
        {n: t.contiguous() for n, t in model.state_dict().items()}, tmp_path / "s"
    )
    state = safetensors.torch.load_file(tmp_path / "s")
    with pytest.raises(RuntimeError, match="Plan.load"):
        sft.load(build(), state)
    sft.load(converted(), state)
    with pytest.raises(RuntimeError, match="state_dict: .*values"):
        sft.load(converted(1), state)


@pytest.mark.parametrize(
    "saved",
    [
        3,
        {},
        {"plan": 3},
        {"plan": {"x": 3}, "values_dtype": None},
        {"plan": {}, "values_dtype": "frozen"},
    ],
    ids=repr,
)
def test_broken_metadata_is_refused(saved):
    state = trained()[0].state_dict()
    state._metadata[""]["sparse_ft"] = saved
    with pytest.raises(ValueError, match="state_dict: its metadata holds a broken plan"):
        sft.load(build(), state)


def test_a_state_without_a_plan_into_a_plain_model_says_that_nothing_is_selected():
    model = build()
    sft.convert(model, plan())
    with pytest.warns(UserWarning, match="state_dict: there is no plan in it"):
        sft.load(build(), sft.state_dict(model))


def test_a_path_is_not_a_state_dict():
    with pytest.raises(TypeError, match="state_dict: expected a mapping .*'model.pt'; torch.load"):
        sft.load(build(), "model.pt")


@pytest.mark.parametrize("between", ["nothing", "read", "step"])
def test_a_checkpoint_that_fills_the_models_own_memory(between):
    """As torch.distributed.checkpoint does, which reads attributes before it loads. No values come
    with an aliased weight, so what it was filled with is the truth.
    """
    model = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    sft.convert(model, {"0.weight": sft.Entries([1, 3])})
    (values,) = (p for p in model.parameters() if p.requires_grad)
    state = model.state_dict()
    if between == "step":  # trained on since: what a state_dict shows then is no checkpoint
        torch.optim.SGD([values], lr=0.1).step(lambda: model(torch.ones(1, 4)).sum().backward())
    else:
        state["0.weight"].copy_(torch.tensor([5.0, 6.0, 7.0, 8.0]))
    wanted = state["0.weight"].clone()
    if between == "read":
        with pytest.warns(UserWarning, match="changed behind the module's back"):
            model[0].weight
    model.load_state_dict(state)
    assert torch.equal(values, wanted[[1, 3]])
    assert torch.equal(model[0].weight, wanted)
