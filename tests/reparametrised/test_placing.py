"""Small deltas on real models: training, converting, saving, copying, reverting."""

import copy
import gc
import itertools
import pickle
import warnings
import weakref

import pytest
import torch
from helpers.architectures import TOKENS, build
from helpers.exhaustive import stride
from helpers.interrupting import interrupted
from torch import nn

import sparse_ft as sft
from sparse_ft import reparametrised as rp
from sparse_ft.nn.step_hook import StepHook
from sparse_ft.reparametrised import (
    HeadOffsets,
    RotatedValues,
    SalientMap,
    ScaleShift,
    merge,
    parts_of,
    put,
    reached,
    remove,
)

IDS = TOKENS["input_ids"]
# Prime strides meet the lines of a loop at another place in each of its turns.
PUTTING, MERGING = stride(7), stride(7)
O_PROJ = "model.layers.0.self_attn.o_proj"
DOWN, UP = "model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj"
PLAN = {f"{UP}.weight": sft.Rows([0, 3]), "model.norm.weight": "all"}


def llama():
    model, _ = build("Llama")
    return model.train()


def parts():
    return {
        O_PROJ: HeadOffsets([1], 8, new_bias=True),
        DOWN: SalientMap([0, 2, 5]),
        UP: RotatedValues(sft.Entries([0, 5, 9]), "dct"),
    }


def train(model, steps=3):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = sft.SelectiveAdamW(trained, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
    return loss.item()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_they_alone_train_and_revert_merges_them():
    model = llama()
    flags = [parameter.requires_grad for parameter in model.parameters()]
    before = logits(model)
    put(model, parts())
    assert torch.equal(logits(model), before)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names == [
        f"{O_PROJ}.head_offsets.values",
        f"{UP}.rotated.values",
        f"{DOWN}.salient_map.values",
    ]
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    train(model)
    for name, parameter in model.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name]), name
    after = logits(model)
    assert (after - before).abs().max() > 1e-3
    assert sft.revert(model) is model
    torch.testing.assert_close(logits(model), after, atol=1e-5, rtol=0)
    assert not any(parts_of(model))
    assert flags == [p.requires_grad for n, p in model.named_parameters() if n != f"{O_PROJ}.bias"]
    with pytest.raises(ValueError, match="not converted"):
        sft.revert(model)


@pytest.mark.parametrize("order", ["before", "after"])
def test_beside_a_conversion_and_lean(order):
    model = llama()
    if order == "before":
        sft.convert(model, PLAN, lean=True)
        put(model, parts())
    else:
        put(model, parts())
        sft.convert(model, PLAN, lean=True)
    plain = put(llama(), parts(), freeze=False)
    for each in (model, plain):
        torch.manual_seed(0)
        for part, _ in parts_of(each):
            nn.init.normal_(next(part.parameters()), std=0.1)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 5 and f"{UP}.values" in trained and "model.norm.weight" in trained
    loss = model(IDS, labels=IDS).loss
    torch.testing.assert_close(loss, plain(IDS, labels=IDS).loss)
    train(model)
    text = str(sft.summary(model))
    for kind in ("head_offsets", "salient_map", "rotated"):
        assert f"reparametrised: {kind}" in text
    assert sft.summary(model).trainable == 8 + 9 + 3 + 2 * 16 + 16
    after = logits(model)
    for call in (lambda: sft.save_delta(model, "unused"), lambda: sft.disabled(model).__enter__()):
        with pytest.raises(ValueError, match="reparametrised delta"):
            call()
    sft.revert(model)
    torch.testing.assert_close(logits(model), after, atol=1e-5, rtol=0)
    assert all(p.requires_grad for n, p in model.named_parameters() if n != f"{O_PROJ}.bias") or (
        order == "after"
    )


def test_checkpoints_go_on_bit_for_bit():
    model, twin = put(llama(), parts()), put(llama(), parts())
    train(model)
    state = model.state_dict()
    twin.load_state_dict(state)
    assert torch.equal(logits(twin), logits(model))
    assert train(twin) == train(model)
    other = put(llama(), {**parts(), O_PROJ: HeadOffsets([0], 8)})
    with pytest.raises(RuntimeError, match=r"head_offsets' was trained as.*\[1\].*\[0\]"):
        other.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key.*salient_map.values"):
        model.load_state_dict(llama().state_dict())


def test_copies_pickles_and_casts():
    model = put(llama(), parts())
    train(model)
    want = logits(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(twin), want)
        for part, _ in parts_of(twin):
            with torch.no_grad():
                next(part.parameters()).add_(1)
        assert not torch.equal(logits(twin), want) and torch.equal(logits(model), want)
        sft.revert(twin)
    model.to(torch.bfloat16)
    own = {id(p) for part, _ in parts_of(model) for p in part.parameters()}
    for parameter in model.parameters():
        assert parameter.dtype == (torch.float32 if id(parameter) in own else torch.bfloat16)
    assert logits(model).dtype == torch.bfloat16


def test_on_a_part_of_a_model():
    model = nn.Sequential(small_net(), small_net())
    put(model[0], small_parts())
    assert all(parameter.requires_grad for parameter in model[1].parameters())
    sft.revert(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    sft.convert(model, {"0.0.weight": sft.Rows([1]), "1.0.weight": sft.Rows([1])})
    put(model[0], {"2": SalientMap([0, 1])})
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["0.0.values", "0.2.salient_map.values", "1.0.values"]


def test_remove_gives_the_model_back():
    model = llama()
    before = logits(model)
    put(model, parts())
    train(model)
    remove(model)
    assert torch.equal(logits(model), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_all_or_nothing():
    model = llama()
    state = model.state_dict()
    for wrong, error, says in (
        ({f"{DOWN}x": SalientMap([0])}, KeyError, f"no layer '{DOWN}x'; did you mean '{DOWN}'"),
        ({DOWN: SalientMap([99])}, IndexError, f"'{DOWN}': channels: 99"),
        ({"model": ScaleShift()}, TypeError, "'model'.*no floating-point weight"),
    ):
        with pytest.raises(error, match=says):
            put(model, {O_PROJ: HeadOffsets([1], 8), **wrong})
        assert not any(parts_of(model)) and model.state_dict().keys() == state.keys()
        assert all(parameter.requires_grad for parameter in model.parameters())
    part = SalientMap([0])
    put(model, {DOWN: part})
    with pytest.raises(ValueError, match="has a delta already, salient_map"):
        put(model, {DOWN: SalientMap([0])})
    with pytest.raises(ValueError, match=f"stands on '{DOWN}' already"):
        put(model, {UP: part})


def looks(model):
    """What `put` and `merge` change."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    marks = [name for name in model.__dict__ if name.startswith("_sparse_ft")]
    tensors = [(name, p.requires_grad, p.tolist()) for name, p in model.named_parameters()]
    return hooks, marks, tensors


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4), nn.LayerNorm(4))


def small_parts():
    return {"0": HeadOffsets([1], 4), "2": RotatedValues(sft.Rows([1]), "dct"), "3": ScaleShift()}


def is_ours(file):
    return "sparse_ft/reparametrised" in file and "reached" not in file


def test_interrupts_while_they_are_put_there():
    before = looks(small_net())
    for line in itertools.count(1, PUTTING):
        model = small_net()
        parts = small_parts()
        if not interrupted(lambda: put(model, parts), line, is_ours):  # noqa: B023
            break
        if looks(model) != before:
            remove(model)  # done, but for handing over the model
        assert looks(model) == before, line
    assert line > 100


def test_interrupts_while_they_are_merged():
    x = torch.randn(5, 8)

    def trained():
        model = put(small_net(), small_parts())
        torch.manual_seed(1)
        for part, _ in parts_of(model):
            for parameter in part.parameters():
                nn.init.normal_(parameter)
        return model

    want = looks(merge(trained()))
    for line in itertools.count(1, MERGING):
        model = trained()
        if not interrupted(lambda: merge(model), line, is_ours):  # noqa: B023
            break
        merge(model)
        assert looks(model) == want, line
    assert line > 50
    torch.testing.assert_close(merge(trained())(x), trained()(x))


def test_what_is_never_called_is_refused_or_told():
    model = nn.TransformerEncoderLayer(16, 2, batch_first=True)
    with pytest.raises(ValueError, match="nn.MultiheadAttention, which never calls it"):
        put(model, {"self_attn.out_proj": HeadOffsets([0], 8)})

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return x @ self.layer.weight.T + self.layer.scale_shift.shift * 0

    model = put(Reads(), {"layer": ScaleShift()})
    model.layer.scale_shift.shift.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="layer: its scale_shift got no gradient"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()  # once


@pytest.mark.parametrize("end", ["merged", "dropped"])
def test_the_hook_after_steps_goes_with_the_last_delta(end, monkeypatch):
    gc.collect()
    monkeypatch.setattr(
        reached, "_standing", weakref.WeakKeyDictionary()
    )  # of other tests' models none
    monkeypatch.setattr(reached, "_hook", StepHook(reached._after_step))
    model = put(
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), {"0": ScaleShift(), "1": ScaleShift()}
    )
    assert reached._hook.is_there
    if end == "merged":
        merge(model)
    else:
        del model
        gc.collect()
    assert not reached._hook.is_there


def test_a_tied_weight_is_not_merged():
    model = llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    put(model, {"lm_head": ScaleShift(new_bias=True)})
    with pytest.raises(ValueError, match="'lm_head'.*that of model.embed_tokens"):
        merge(model)


def test_nothing_to_put_there_and_wrong_kinds_are_refused():
    model = nn.Sequential(nn.Linear(8, 8))
    for parts in ({}, [("0", rp.SalientMap([1]))], None):
        with pytest.raises(TypeError, match="parts: expected"):
            rp.put(model, parts)
    with pytest.raises(TypeError, match=r"model: expected an nn.Module"):
        rp.put("model", {"0": rp.SalientMap([1])})
    assert all(p.requires_grad for p in model.parameters())
    for heads, size in (([1.5], 2), ([True], 2), ([0], 2.5)):
        with pytest.raises(TypeError, match="heads: expected ints"):
            rp.HeadOffsets(heads, size)
    with pytest.raises(TypeError, match="ScaleShift: .*Embedding"):
        rp.put(nn.Sequential(nn.Embedding(4, 4)), {"0": rp.ScaleShift()})
    rp.put(model, {"0": rp.HeadOffsets([0], 2)})
    with pytest.raises(TypeError, match=r"0: it has a delta \(head_offsets\).*layer\(x\)"):
        model[0](input=torch.ones(1, 8))
