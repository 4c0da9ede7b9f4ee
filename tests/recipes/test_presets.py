"""Recipes that are one call of `select`: the plan is that of a dense restatement, and so are the
first 30 steps.
"""

import pytest
import torch
from helpers import choosing_models, dense_recipes, dense_scores
from helpers.restated import restates

import sparse_ft as sft
from sparse_ft.recipes import parts


@pytest.fixture(scope="module")
def bert():
    return choosing_models.case("BERT")


def scored(kind):
    """Dense scores by name, of all weights."""

    def scores(model, names, batches):
        if kind == "random":
            return dense_recipes.random_scores(model, names)
        return getattr(dense_scores, kind)(model, names, batches)

    return scores


def globally(kind, density=0.01):
    return lambda *case: dense_recipes.over_all(scored(kind)(*case), density)


def layerwise(kind, density=0.01):
    return lambda *case: dense_recipes.by_layer(scored(kind)(*case), density)


def of_first_batch(model, names, batches):
    scores = dense_scores.gradient(model, names, batches[:1])
    return dense_recipes.by_layer(scores, 0.05)


def signed(sign):
    def masks(model, names, batches):
        scores = dense_scores.grasp(model, names, batches)
        scores = {name: sign * score for name, score in scores.items()}
        return dense_recipes.over_all(scores, 0.01)

    return masks


def eight_columns(model, names, batches):
    generator = torch.Generator().manual_seed(0)
    scores = {
        name: torch.rand(sft.matrix_shape(model, name), generator=generator) for name in names
    }
    return dense_recipes.columns(scores, 8)


def columns_by_gradient(model, names, batches):
    scores = dense_scores.gradient(model, names, batches)
    return {
        name: dense_recipes.top(s.sum(0), max(1, round(0.2 * s.size(1)))).expand(s.shape)
        for name, s in scores.items()
    }


def a_row(kind):
    return lambda *case: dense_recipes.by_row(scored(kind)(*case), 1)


RULES = {
    "fish": (globally("fisher", 0.005), {}),
    "gps": (a_row("gradient"), {}),
    "neuroada": (a_row("magnitude"), {}),
    "sift": (of_first_batch, {}),
    "speft_random": (globally("random"), {}),
    "speft_magnitude": (globally("magnitude"), {}),
    "speft_gradient": (globally("gradient"), {}),
    "speft_snip": (globally("saliency"), {}),
    "speft_force": (globally("snip"), {}),
    "speft_taylor": (globally("taylor"), {}),
    "speft_fisher": (globally("fisher"), {}),
    "speft_synflow": (globally("synflow"), {}),
    "speft_grasp": (signed(1), {}),
    "tr_pts": (layerwise("fisher"), {}),
    "shira": (layerwise("random"), {}),
    "super_tuning": (layerwise("magnitude"), {}),
    "paca": (eight_columns, {}),
    "gradient_columns": (columns_by_gradient, {"density": 0.2}),
}


@pytest.mark.parametrize("name", RULES)
@restates(*RULES)
def test_the_plan_and_30_steps_are_those_of_the_rule(name, bert):
    rule, settings = RULES[name]
    recipe = sft.recipes.get(name)
    masks = rule(bert.model, parts.weights_of(bert.model), bert.batches)
    plan = recipe(bert.model, bert.batches, **settings)
    dense_recipes.assert_trains(bert, plan, masks, recipe.decay_to)


@restates("activation_columns")
def test_activation_columns_are_those_of_the_largest_inputs(bert):
    sums = {}

    def see(name):
        def hook(module, inputs, output):
            size = inputs[0].reshape(-1, inputs[0].size(-1)).square().sum(0).sqrt()
            sums[name] = sums.get(name, 0) + size

        return hook

    names = parts.weights_of(bert.model)
    hooks = [bert.model.get_submodule(name.removesuffix(".weight")).register_forward_hook(see(name))
             for name in names]  # fmt: skip
    dense_scores.losses(bert.model, bert.batches)
    for hook in hooks:
        hook.remove()
    masks = {}
    for name in names:
        shape = sft.matrix_shape(bert.model, name)
        masks[name] = dense_recipes.top(sums[name], round(0.2 * shape[1])).expand(shape)
    recipe = sft.recipes.get("activation_columns")
    plan = recipe(bert.model, bert.batches, density=0.2)
    dense_recipes.assert_trains(bert, plan, masks)


def test_grasp_has_the_sign_of_the_paper_and_not_of_the_code(bert):
    recipe = sft.recipes.get("speft_grasp")
    released = recipe(bert.model, bert.batches, score=sft.scores.grasp(as_released=True))
    names = parts.weights_of(bert.model)
    dense_recipes.assert_equal(bert.model, released, signed(-1)(bert.model, names, bert.batches))
    assert recipe(bert.model, bert.batches) != released


def test_a_mask_of_a_gradient_keeps_no_dense_gradient(bert):
    """GPS's code multiplies the whole gradient by a mask: no memory is saved."""
    import copy

    model = copy.deepcopy(bert.model)
    plan = sft.recipes.get("gps")(model, bert.batches)
    sft.convert(model, plan)
    dense_scores.losses(model, bert.batches)[0].backward()
    held = {name: p.grad.numel() for name, p in model.named_parameters() if p.grad is not None}
    assert sum(held.values()) == sum(len(plan[name]) for name in plan)


class Blocks:
    """SMT restated: blocks of 10 × 10, which divide none of the model's sizes."""

    size, density = 10, 0.3

    @classmethod
    def masks(cls, model, names, batches, judge):
        """judge: what a block is worth, of the mean gradient in it."""
        gradients = dense_scores.mean(dense_scores.gradients(model, names, batches))
        masks = {name: torch.zeros_like(g, dtype=torch.bool) for name, g in gradients.items()}
        for wanted in (True, False):
            group = {n: g for n, g in gradients.items() if ("attention" in n.split(".")) == wanted}
            blocks = [(judge(block), name, where)
                      for name, g in group.items() for where, block in cls.blocks(g)]  # fmt: skip
            left = round(cls.density * sum(g.numel() for g in group.values()))
            for _, name, (rows, columns) in sorted(blocks, key=lambda each: -each[0]):
                size = masks[name][rows, columns].numel()
                if size <= left:
                    masks[name][rows, columns] = True
                    left -= size
                else:
                    break
        return masks

    @classmethod
    def blocks(cls, matrix):
        for top in range(0, matrix.size(0), cls.size):
            for left in range(0, matrix.size(1), cls.size):
                where = slice(top, top + cls.size), slice(left, left + cls.size)
                yield where, matrix[where]


@restates("smt")
def test_smt_ranks_blocks_by_the_size_of_their_signed_mean(bert):
    names = parts.weights_of(bert.model)
    case = bert.model, names, bert.batches
    recipe = sft.recipes.get("smt")
    plan = recipe(bert.model, bert.batches, block_size=10, density=0.3)
    expected = Blocks.masks(*case, judge=lambda block: block.mean().abs())
    dense_recipes.assert_trains(bert, plan, expected)
    by_sums = Blocks.masks(*case, judge=lambda block: block.sum().abs())
    assert any(not torch.equal(expected[n], by_sums[n]) for n in names), "ragged blocks count"
    unsigned = recipe(bert.model, bert.batches, block_size=10, density=0.3, score="abs_mean")
    assert unsigned != plan


def test_smt_takes_weights_smaller_than_a_block_and_other_budgets(bert):
    recipe = sft.recipes.get("smt")
    plan = recipe(bert.model, bert.batches, density=0.2, density_mlp=1.0)  # 256, of sizes 16 and 24
    rest = parts.attention_and_rest(bert.model)["rest"]
    assert set(rest) <= set(plan)
    assert 0 < len(set(plan) - set(rest)) < len(parts.attention_and_rest(bert.model)["attention"])


@restates("fishertune")
def test_fishertune_adds_how_the_fisher_changes_with_the_domain(bert):
    names = parts.weights_of(bert.model)
    here = dense_scores.fisher(bert.model, names, bert.batches[:1])
    there = dense_scores.fisher(bert.model, names, bert.batches[1:])
    scores = {name: here[name] + 2.0 * (here[name] - there[name]).abs() for name in names}
    recipe = sft.recipes.get("fishertune")
    plan = recipe(bert.model, bert.batches[:1], shifted=bert.batches[1:], weight=2.0, density=0.05)
    dense_recipes.assert_trains(bert, plan, dense_recipes.by_layer(scores, 0.05))
    alone = recipe(bert.model, bert.batches[:1], density=0.05)
    assert alone == sft.recipes.get("tr_pts")(bert.model, bert.batches[:1], density=0.05)
