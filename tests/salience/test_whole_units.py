"""`select` chooses whole units under any score and budget."""

import pytest
import torch
from helpers.unit_models import build

import sparse_ft as sft

LAYER = "model.layers.0."
ATTENTION = [f"{LAYER}self_attn.{name}_proj.weight" for name in "qkvo"]


def by_hand(model, units, scores, targets):
    """What each unit is worth: a plain loop over its entries."""
    worth = []
    for unit in units:
        total = 0.0
        for part in unit.parts:
            if part.parameter not in targets:
                continue
            score = scores[part.parameter]
            if part.expert is not None:
                score = score[part.expert]
            dimension = part.dimension - (part.expert is not None)
            for index in part.index:
                total += score.select(dimension, index).double().sum().item()
        worth.append(total)
    return worth


@pytest.fixture(scope="module")
def llama():
    model, batch = build("Llama")
    return model, {**batch, "labels": batch["input_ids"]}


def test_the_best_heads_by_any_score(llama):
    model, batch = llama
    units = sft.units(model, batch)
    scores = {name: p.detach().abs() for name, p in model.named_parameters()}
    plan = sft.select(model, budget=1, structure="heads", score="magnitude", units=units)
    worth = by_hand(model, units["heads"], scores, ATTENTION)
    best = units["heads"][worth.index(max(worth))]
    assert dict(plan) == dict(units.plan([best]))
    model(**batch).loss.backward()
    scores = {n: p.grad.abs() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    plan = sft.select(model, density=0.3, structure="channels", score="gradient", batches=[batch])
    channels = units["channels"]
    worth = by_hand(model, channels, scores, [p.parameter for p in channels[0].parts])
    order = sorted(range(10), key=worth.__getitem__, reverse=True)
    assert dict(plan) == dict(units.plan([channels[number] for number in order[:3]]))


def test_targets_are_the_parameters_of_a_unit_that_train(llama):
    model, batch = llama
    values = ["*v_proj.weight", "*o_proj.weight"]
    plan = sft.select(
        model, budget=1, structure="heads", score="magnitude", targets=values, batches=None
    )
    assert set(plan) == {ATTENTION[2], ATTENTION[3]}
    units = sft.units(model, batch)
    scores = {name: p.detach().abs() for name, p in model.named_parameters()}
    worth = by_hand(model, units["heads"], scores, ATTENTION[2:])
    best = units["heads"][worth.index(max(worth))]
    assert dict(plan) == dict(units.plan([best], targets=values))


def test_a_share_of_all_experts_channels_and_whole_experts():
    model, batch = build("Qwen3-MoE")
    units = sft.units(model, batch)
    layers = f"{LAYER}mlp.experts."
    numbers = torch.arange(3.0)[:, None, None]
    scores = {
        f"{layers}{n}": numbers.expand_as(model.get_parameter(layers + n))
        for n in ("gate_up_proj", "down_proj")
    }
    plan = sft.select(model, density=0.34, structure="experts", score=scores, units=units)
    assert dict(plan) == dict(units.plan(units["experts"][2:]))
    plan = sft.select(model, budget=sft.Share(0.5), structure="experts", score=scores, units=units)
    assert dict(plan) == dict(units.plan(units["experts"][2:]))
    plan = sft.select(
        model, budget=4, scope="global", structure="channels", score=scores, units=units
    )
    assert {part.expert for part in units["channels"][-5].parts} == {2}
    assert plan[f"{layers}down_proj"].kind == "blocks"
    assert (plan[f"{layers}down_proj"].index[:, 0] == 2).all()


def test_layers_train_whole_and_embedding_rows_alone(llama):
    model, batch = build("ResNet")
    plan = sft.select(
        model, budget=1, structure="layers", score="random", units=sft.units(model, batch)
    )
    assert set(plan.values()) == {"all"} and len(plan) > 5
    model, batch = llama
    plan = sft.select(model, budget=3, structure="embedding_rows", score="random")
    assert [len(what) for what in plan.values()] == [3]


def test_less_than_one_unit_is_told(llama):
    with pytest.warns(UserWarning, match="density: 0.01 is less than one unit of"):
        sft.select(llama[0], density=0.01, structure="heads", score="magnitude")


def test_what_is_refused(llama):
    model, batch = llama
    with pytest.raises(ValueError, match="structure: there are no 'experts' in this model"):
        sft.select(model, budget=1, structure="experts", score="random")
    with pytest.raises(ValueError, match="budget: .* does not choose whole units"):
        sft.select(model, budget=sft.LikeLora(2), structure="heads", score="random")
    with pytest.raises(ValueError, match="structure: expected .*'heads'.* got 'head'"):
        sft.select(model, budget=1, structure="head", score="random")
