"""Recipes that look at more than a score and return a plan: S2FT, SPT, LT-SFT, FedSelect, ESFT,
CEFT, grafting, alignment.
"""

import copy

import pytest
import torch
from helpers import choosing_models, dense_recipes, dense_scores
from helpers.restated import restates
from torch import nn

import sparse_ft as sft
from sparse_ft.recipes import parts

STEPS, LR = 30, 1e-3


@pytest.fixture(scope="module")
def bert():
    return choosing_models.case("BERT")


@pytest.fixture(scope="module")
def llama():
    return choosing_models.case("Llama")


def silenced(model, consumer, columns, producers, batch):
    """{producer: rows without a gradient when these columns of the consumer are zero}."""
    model = copy.deepcopy(model)
    model.get_parameter(consumer).data[:, columns] = 0
    weights = [model.get_parameter(name).requires_grad_(True) for name in producers]
    gradients = torch.autograd.grad(model(**batch).loss, weights)
    dead = [(g.abs().amax(1) < 1e-14).nonzero().flatten() for g in gradients]
    return dict(zip(producers, dead))


@restates("s2ft")
def test_s2ft_couples_rows_and_columns_also_under_grouped_queries(llama):
    """One of its code bases swaps rows and columns; neither knows groups of heads."""
    plan = sft.recipes.get("s2ft")(llama.model, llama.batches, density=0.5)
    masks = {}
    for number in range(2):
        attention, mlp = (f"model.layers.{number}.{n}" for n in ("self_attn", "mlp"))
        for consumer, producers in (
            (f"{attention}.o_proj.weight", [f"{attention}.v_proj.weight"]),
            (f"{mlp}.down_proj.weight", [f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight"]),
        ):
            columns = plan[consumer].index.long()
            assert plan[consumer].kind == "columns"
            rest = silenced(llama.model, consumer, columns, producers, llama.batches[0])
            shape = sft.matrix_shape(llama.model, consumer)
            masks[consumer] = torch.zeros(shape, dtype=torch.bool)
            masks[consumer][:, columns] = True
            for producer, rows in rest.items():
                shape = sft.matrix_shape(llama.model, producer)
                masks[producer] = torch.zeros(shape, dtype=torch.bool)
                masks[producer][rows] = True
        assert len(plan[f"{attention}.v_proj.weight"]) == 4  # one of two groups, of 4 features
        assert len(plan[f"{attention}.o_proj.weight"]) == 8  # two query heads share it
    dense_recipes.assert_trains(llama, plan, masks, sft.recipes.get("s2ft").decay_to)
    reads = sft.recipes.get("s2ft")(llama.model, llama.batches, density=0.5, reads_only=True)
    assert {n.split(".")[-2] for n in reads} == {"o_proj", "down_proj"}
    assert all(what.kind == "columns" for what in reads.values())


def test_gradients_of_s2ft_accumulate(llama):
    plan = sft.recipes.get("s2ft")(llama.model, llama.batches, density=0.5)
    model = copy.deepcopy(llama.model)
    sft.convert(model, plan)
    for loss in dense_scores.losses(model, llama.batches):
        loss.backward()
    every = dense_scores.gradients(llama.model, list(plan), llama.batches)
    for name, what in plan.items():
        got = model.get_submodule(name.rpartition(".")[0]).values.grad
        torch.testing.assert_close(got, what.gather(every[0][name] + every[1][name]))


def test_s2ft_of_an_encoder_and_by_a_score(bert):
    plan = sft.recipes.get("s2ft")(bert.model, bert.batches, density=0.25)
    kinds = {name.split(".layer.")[1].partition(".")[2] for name in plan}
    assert kinds == {
        "attention.self.value.weight",
        "attention.output.dense.weight",
        "intermediate.dense.weight",
        "output.dense.weight",
    }
    scored = sft.recipes.get("s2ft")(bert.model, bert.batches, density=0.25, score="gradient")
    assert set(scored) == set(plan) and scored != plan
    with pytest.raises(ValueError, match="heads or channels"):
        sft.recipes.get("s2ft")(torch.nn.Linear(3, 3), [torch.randn(2, 3)])


@restates("spt")
def test_spt_takes_entries_and_columns_where_many_entries_matter(bert):
    names = parts.weights_of(bert.model)
    gradients = dense_scores.gradients(bert.model, names, bert.batches)
    scores = dense_scores.mean(gradients, torch.square)
    masks = dense_recipes.over_all(scores, 0.1)
    columns = 2
    structured = [n for n, m in masks.items() if m.sum() >= columns * m.size(0)]
    assert 0 < len(structured) < len(names)
    for name in structured:
        best = dense_recipes.top(scores[name].sum(0), columns)
        masks[name] = best.expand(masks[name].shape)
    plan = sft.recipes.get("spt")(bert.model, bert.batches, density=0.1, columns=columns)
    assert {plan[name].kind for name in structured} == {"columns"}
    dense_recipes.assert_trains(bert, plan, masks)


@restates("lt_sft")
def test_lt_sft_ranks_by_movement_and_rewinds_every_bit(bert):
    names = parts.weights_of(bert.model)
    scores = dense_recipes.moved(dense_recipes.full_run(bert, names, 5, 1e-3), bert.model, names)
    model = copy.deepcopy(bert.model)
    flags = [p.requires_grad for p in model.parameters()]
    plan = sft.recipes.get("lt_sft")(model, bert.batches, steps=5, lr=1e-3, density=0.1)
    assert dense_recipes.distance(model, bert.model) == 0
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    dense_recipes.assert_trains(bert, plan, dense_recipes.over_all(scores, 0.1), decay_to="origin")


def test_a_short_run_that_fails_is_rewound(bert):
    model = copy.deepcopy(bert.model)
    calls = []

    def loss(model, batch):
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return model(**batch).loss

    with pytest.raises(KeyboardInterrupt):
        sft.recipes.get("lt_sft")(model, bert.batches, loss=loss, steps=5, lr=1e-3)
    assert dense_recipes.distance(model, bert.model) == 0


def test_a_short_run_leaves_the_statistics_of_batch_norms():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 4))
    batches = [torch.randn(5, 3, 4, 4) for _ in range(2)]
    before = copy.deepcopy(model.state_dict())

    def loss(model, batch):
        return model(batch).square().mean()

    sft.recipes.get("lt_sft")(model, batches, loss=loss, steps=3, density=0.1)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_deltas_of_lt_sft_add_up(bert):
    """A language and a task: two deltas of disjoint entries, merged, are both."""
    recipe = sft.recipes.get("lt_sft")
    first = recipe(bert.model, bert.batches[:1], steps=2, lr=1e-3, density=0.05)
    second = recipe(bert.model, bert.batches[1:], steps=2, lr=1e-3, density=0.05)
    models = [copy.deepcopy(bert.model) for _ in range(2)]
    deltas = []
    for model, plan in zip(models, (first, second)):
        model.requires_grad_(False)
        deltas.append(_trained_delta(model, plan, bert.batches))
    both = sft.merge(deltas, "sum")
    target = copy.deepcopy(bert.model)
    sft.apply(target, both)
    summed = [a + b - c for a, b, c in zip(*(m.parameters() for m in (*models, bert.model)))]
    for parameter, expected in zip(target.parameters(), summed):
        torch.testing.assert_close(parameter, expected)


def _trained_delta(model, plan, batches):
    base = copy.deepcopy(model)
    sft.convert(model, plan)
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-3)
    dense_scores.losses(model, batches)[0].backward()
    optimizer.step()
    sft.revert(model)
    return sft.diff(base, model)


def test_fedselect_keeps_the_clients_entries_and_adds_what_moved_most(bert):
    names = parts.weights_of(bert.model)
    recipe = sft.recipes.get("fedselect")
    once = dense_recipes.full_run(bert, names, 3, 1e-3)
    first = recipe(once, base=bert.model, density=0.1)
    scores = dense_recipes.moved(once, bert.model, names)
    dense_recipes.assert_equal(bert.model, first, dense_recipes.by_layer(scores, 0.1))
    twice = dense_recipes.full_run(bert, names, 6, 1e-3)
    second = recipe(twice, base=once, previous=first, density=0.1)
    scores = dense_recipes.moved(twice, once, names)
    masks = {}
    for name, score in scores.items():
        before = first[name].mask(tuple(score.shape))
        others = score.masked_fill(before, -1.0)
        masks[name] = before | dense_recipes.top(others, round(0.1 * score.numel()))
    dense_recipes.assert_equal(bert.model, second, masks)
    with pytest.raises(ValueError, match="base"):
        recipe(once)


@restates("grafting")
def test_grafting_restores_everything_outside_bit_for_bit(bert):
    names = parts.weights_of(bert.model)
    every = [name for name, _ in bert.model.named_parameters()]
    tuned = dense_recipes.full_run(bert, every, STEPS, LR)
    plan = sft.recipes.get("grafting")(tuned, base=bert.model, density=0.05)
    masks = dense_recipes.over_all(dense_recipes.moved(tuned, bert.model, names), 0.05)
    dense_recipes.assert_equal(bert.model, plan, masks)
    after = copy.deepcopy(tuned)
    assert sft.recipes.put_back(after, bert.model, plan) is after
    for name in every:
        old, new, got = (m.get_parameter(name) for m in (bert.model, tuned, after))
        mask = masks.get(name, torch.zeros_like(old, dtype=torch.bool)).view(old.shape)
        assert torch.equal(got, torch.where(mask, new, old)), name


@restates("alignment")
def test_alignment_comes_back_inside_of_its_entries(bert):
    names = parts.weights_of(bert.model)
    plan = sft.recipes.get("alignment")(bert.model, bert.batches, density=0.05)
    masks = dense_recipes.by_layer(dense_scores.saliency(bert.model, names, bert.batches), 0.05)
    dense_recipes.assert_equal(bert.model, plan, masks)
    tuned = dense_recipes.full_run(bert, names, STEPS, LR)
    after = sft.recipes.put_back(copy.deepcopy(tuned), bert.model.state_dict(), plan, "inside")
    for name in names:
        old, new, got = (m.get_parameter(name) for m in (bert.model, tuned, after))
        assert torch.equal(got, torch.where(masks[name], old, new))
    with pytest.raises(ValueError, match="where"):
        sft.recipes.put_back(after, bert.model, plan, "within")
    with pytest.raises(ValueError, match="base: it has nothing"):
        sft.recipes.put_back(after, {}, plan, "inside")


@pytest.fixture(scope="module")
def mixture():
    return choosing_models.case("Qwen-MoE")


def experts_in(plan, layer):
    """The experts of a layer that train, of its 3-D weights."""
    found = []
    for name in ("gate_up_proj", "down_proj"):
        what = plan[f"model.layers.{layer}.mlp.experts.{name}"]
        rows = what.matrix_shape[0] // 4
        numbers = what.index.long().div(rows, rounding_mode="floor").unique_consecutive()
        assert len(what) == rows * len(numbers)  # whole experts
        found.append(set(numbers.tolist()))
    assert found[0] == found[1]
    return found[0]


def test_esft_takes_the_fewest_experts_of_each_layer_by_its_own_shares(mixture):
    shares = dense_recipes.shares_of_experts(mixture.model, mixture.batches)
    for p in (0.2, 0.6):
        plan = sft.recipes.get("esft")(mixture.model, mixture.batches, share=p)
        for layer in range(2):
            assert experts_in(plan, layer) == dense_recipes.fewest(shares[layer], p), (layer, p)
    # the released code divides by all layers: every share is half, and other experts are taken
    plan = sft.recipes.get("esft")(mixture.model, mixture.batches, share=0.5)
    assert any(dense_recipes.fewest(shares[n] / 2, 0.5) != experts_in(plan, n) for n in range(2))
    gates = sft.recipes.get("esft")(mixture.model, mixture.batches, share=0.5, gates=True)
    assert set(gates) == set(plan)
