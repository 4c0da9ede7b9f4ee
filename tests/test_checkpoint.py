"""Checkpoints: what was made under another selection is refused, and sft.load brings the plan
along.
"""

import copy

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from helpers.checkpoints import (
    FORMS,
    bare,
    build,
    converted,
    plan,
    same,
    snapshot,
    through_torch,
    trained,
)
from torch import nn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_another_selection_of_the_same_size_is_refused_and_nothing_is_loaded(
    form, dtype, strict, assign
):
    model, _ = trained(dtype)
    other = converted(shift=1, dtype=dtype)
    before = snapshot(other)
    with pytest.raises(RuntimeError, match=r"state_dict: .*'0\.table\.values'"):
        other.load_state_dict(form(model.state_dict()), strict=strict, assign=assign)
    assert same(snapshot(other), before)


@pytest.mark.parametrize("name", [n for n, what in plan().items() if what != "all"])
@pytest.mark.parametrize("form", [through_torch, bare])
def test_each_kind_of_parameter_is_named(name, form):
    """fp32 values over a 16-bit weight, where aliased parameters have a key of their own, too."""
    model, _ = trained(torch.bfloat16)
    other = build(torch.bfloat16, 1)
    sft.convert(other, plan() | {name: plan(1)[name]})
    before = snapshot(other)
    where = name.removesuffix(".weight").removesuffix(".bias")
    with pytest.raises(RuntimeError, match=rf"state_dict: .*'{where}.*values'"):
        other.load_state_dict(form(model.state_dict()))
    assert same(snapshot(other), before)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    "saved, loaded",
    [(d, e) for d in ("float32", "bfloat16", "float16") for e in ("float32", "bfloat16")],
)
def test_the_same_selection_loads_from_and_into_every_dtype(form, saved, loaded):
    model, _ = trained(getattr(torch, saved))
    other = converted(dtype=getattr(torch, loaded))
    state = form(model.state_dict())
    assert not any(other.load_state_dict(state))
    values = {name: tensor for name, tensor in other.named_parameters() if name.endswith("values")}
    assert len(values) == 5
    for name, tensor in values.items():
        assert name not in state or torch.equal(tensor, state[name].to(tensor.dtype)), name
    for name, tensor in sft.state_dict(other).items():
        torch.testing.assert_close(tensor.float(), state[name].float(), rtol=2**-7, atol=1e-6)
    assert saved != loaded or same(snapshot(other), snapshot(model))


def test_a_checkpoint_cast_as_a_whole_loads():
    """The weight was rounded to bfloat16, then to float16; the values to float16 at once."""
    model, _ = trained(torch.bfloat16)
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    other = converted(dtype=torch.bfloat16)
    other.load_state_dict(state)
    assert torch.equal(other[0]["linear"].values, state["0.linear.values"].float())


def test_an_average_of_checkpoints_loads():
    states = [trained(torch.bfloat16, steps=steps)[0].state_dict() for steps in (2, 3, 5)]
    mean = {name: sum(state[name] for state in states) / 3 for name in states[0]}
    converted(dtype=torch.bfloat16).load_state_dict(mean)


def test_a_diverged_run_loads_too():
    model, _ = trained()
    with torch.no_grad():
        model[0]["linear"].values[0, 0] = float("nan")
        model[0]["linear"].values[1, 1] = float("inf")
    other = converted()
    other.load_state_dict(bare(model.state_dict()))
    assert other[0]["linear"].values.isnan().sum() == 1


def test_weights_alone_and_values_alone_load():
    model, _ = trained()
    state = model.state_dict()
    weights = {name: tensor for name, tensor in state.items() if not name.endswith("values")}
    other = converted(shift=1)
    assert not any(other.load_state_dict(weights)), "another selection of the same weights"
    assert torch.equal(other[0]["linear"].weight, state["0.linear.weight"])
    values = {name: tensor for name, tensor in state.items() if name.endswith("values")}
    other = converted()
    other.load_state_dict(values, strict=False)
    assert torch.equal(other[0]["linear"].values, state["0.linear.values"])
    assert torch.equal(other[0]["linear"].weight[:, [0, 2]], state["0.linear.values"])


def test_values_alone_of_another_plan_are_refused_where_the_metadata_tells():
    model, _ = trained()
    state = model.state_dict()
    for name in [name for name in state if not name.endswith("values")]:
        del state[name]
    other = converted(shift=1)
    before = snapshot(other)
    with pytest.raises(
        RuntimeError, match=r"'0\.table\.values' belong to another selection \(Rows"
    ):
        other.load_state_dict(through_torch(state), strict=False)
    assert same(snapshot(other), before)


def test_a_module_alone_and_one_in_a_wrapper():
    model, _ = trained()
    state = model.state_dict()
    other = converted(shift=1)
    before = snapshot(other)
    part = {
        name.removeprefix("0.linear."): t
        for name, t in state.items()
        if name.startswith("0.linear.")
    }
    with pytest.raises(RuntimeError, match="state_dict: .*'values'"):
        other[0]["linear"].load_state_dict(part)
    wrapper = nn.ModuleDict({"module": other})
    with pytest.raises(RuntimeError, match="'module.0.table.values'"):
        wrapper.load_state_dict({f"module.{name}": tensor for name, tensor in state.items()})
    assert same(snapshot(other), before)
    nn.ModuleDict({"module": converted()}).load_state_dict(
        {f"module.{name}": tensor for name, tensor in state.items()}
    )


def test_a_layer_made_by_hand_is_checked_too():
    first, second = (
        sft.nn.SelectiveLinear.from_linear(nn.Linear(6, 4), sft.Columns([i])) for i in (1, 2)
    )
    before = snapshot(second)
    with pytest.raises(RuntimeError, match="4 of 4 numbers of its 'values'"):
        second.load_state_dict(first.state_dict())
    assert same(snapshot(second), before)


def test_an_edited_weight_is_refused_beside_its_values():
    model, _ = trained()
    state = bare(model.state_dict())
    state["0.linear.weight"] = state["0.linear.weight"].clone()
    state["0.linear.weight"][3, 2] += 1
    with pytest.raises(RuntimeError, match="1 of 16 numbers of its '0.linear.values'"):
        converted().load_state_dict(state)


def test_files_mapped_into_memory_and_assigned(tmp_path):
    model, _ = trained(torch.bfloat16)
    torch.save(model.state_dict(), tmp_path / "c.pt")
    for assign in (False, True):
        other = converted(dtype=torch.bfloat16)
        other.load_state_dict(torch.load(tmp_path / "c.pt", mmap=True), assign=assign)
        assert same(snapshot(other), snapshot(model))
        with pytest.raises(RuntimeError, match="state_dict: "):
            converted(1, torch.bfloat16).load_state_dict(
                torch.load(tmp_path / "c.pt", mmap=True), assign=assign
            )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_distributed_checkpoints(tmp_path):
    """They write into the memory of the model itself.

    What does not fit is told before a forward uses it.
    """
    model, _ = trained(torch.bfloat16)
    dcp.save(model.state_dict(), checkpoint_id=tmp_path / "dcp", no_dist=True)
    other = converted(dtype=torch.bfloat16)
    state = other.state_dict()
    dcp.load(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    other.load_state_dict(state)
    assert same(snapshot(other), snapshot(model))
    wrong = converted(1, torch.bfloat16)
    state = wrong.state_dict()
    dcp.load(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    with pytest.raises(RuntimeError, match=r"state_dict: .*'0\.table\.values'"):
        wrong.load_state_dict(state)


def test_copies_carry_their_plan_and_reverted_models_carry_none():
    model = converted()
    for twin in (copy.deepcopy(model), through_torch(model, weights_only=False)):
        assert sft.Plan(plan()) == carried_plan(twin)
        with pytest.raises(RuntimeError, match="state_dict: "):
            twin.load_state_dict(converted(1).state_dict())
        sft.revert(twin)
        assert not twin._load_state_dict_pre_hooks and not twin._state_dict_hooks
        assert carried_plan(twin) is None
        twin.load_state_dict(build(seed=3).state_dict())


def carried_plan(model):
    from sparse_ft.carried import carried_by

    carried = carried_by(model.state_dict())
    return None if carried is None else carried[0]


# sft.state_dict


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_state_dict_has_the_keys_of_a_model_that_was_never_converted(dtype):
    model, _ = trained(dtype)
    with torch.no_grad():
        model[0]["linear"].values.add_(1)
    state, plain = sft.state_dict(model), build(dtype)
    assert state.keys() == plain.state_dict().keys() == build(dtype).state_dict().keys()
    assert not any(plain.load_state_dict(state))
    assert torch.equal(plain[0]["linear"].weight[:, [0, 2]], model[0]["linear"].values.to(dtype))
    assert not any("sparse_ft" in metadata for metadata in state._metadata.values())
    wrapped = nn.ModuleDict({"module": model})
    assert sft.state_dict(wrapped).keys() == {f"module.{name}" for name in state}
    assert sft.state_dict(plain).keys() == state.keys()
    assert not any(converted(1, dtype).load_state_dict(state)), (
        "a plan that selects otherwise takes the weights"
    )


def test_save_pretrained_has_no_unexpected_keys(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        vocab_size=11,
    )
    model = transformers.BertForSequenceClassification(config)
    sft.convert(model, sft.select(model, density=0.3))
    model.save_pretrained(tmp_path, state_dict=sft.state_dict(model))
    assert not any(
        name.endswith("values")
        for name in safetensors.torch.load_file(tmp_path / "model.safetensors")
    )
    again, info = transformers.BertForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert same(again.state_dict(), sft.state_dict(model))
