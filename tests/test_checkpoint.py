"""Checkpoints: what was made under another selection is refused, and sft.load brings the plan
along.
"""

import copy
import io

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

import sparse_ft as sft


def build(dtype=torch.float32, seed=0):
    """Every kind of owner: a linear layer, an embedding, an aliased convolution, a bias
    and a norm.
    """
    torch.manual_seed(seed)
    layers = dict(
        table=nn.Embedding(9, 8),
        linear=nn.Linear(8, 8),
        norm=nn.LayerNorm(8),
        conv=nn.Conv1d(5, 4, 3),
        head=nn.Linear(6, 3),
    )
    return nn.Sequential(nn.ModuleDict(layers)).to(dtype)


def forward(model):
    m = model[0]
    x = m["norm"](m["linear"](m["table"](torch.arange(10).view(2, 5) % 9)))
    return m["head"](m["conv"](x))


def plan(shift=0):
    """Two plans of the same sizes."""
    return {
        "0.table.weight": sft.Rows([1 + shift, 4]),
        "0.linear.weight": sft.Columns([0, 2 + shift]),
        "0.linear.bias": sft.Entries([3 + shift]),
        "0.norm.weight": sft.Entries([0 + shift, 6]),
        "0.conv.weight": sft.Rows([1 + shift]),
        "0.head.bias": "all",
    }


def trained(dtype=torch.float32, shift=0, steps=3, values_dtype=None):
    model = build(dtype)
    sft.convert(model, plan(shift), values_dtype=values_dtype)
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=0.05)
    for _ in range(steps):
        forward(model).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def converted(shift=0, dtype=torch.float32, seed=1):
    model = build(dtype, seed)
    sft.convert(model, plan(shift))
    return model


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def through_torch(state, **options):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, **options)


def bare(state):
    """Without what torch keeps beside the tensors."""
    return dict(state.items())


FORMS = {"itself": lambda s: s, "torch": through_torch, "copy": copy.deepcopy, "bare": bare}


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


# sft.load


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
