"""Recipes by name: the table, the pages, what is refused, and PEFT's way to them."""

import copy

import pytest
from helpers import choosing_models

import sparse_ft as sft
from sparse_ft.module_command import main
from sparse_ft.recipes.recipe import RECIPES


@pytest.fixture(scope="module")
def bert():
    return choosing_models.case("BERT")


def test_the_list_is_a_table_and_the_command_line_prints_it(capsys):
    table = str(sft.recipes.list())
    assert main(["recipes"]) == 0
    assert capsys.readouterr().out.strip() == table
    for name in RECIPES:
        assert any(line.split()[0] == name for line in table.splitlines())
    assert main(["recipes", "gps"]) == 0
    page = capsys.readouterr().out
    assert "2312.10136" in page and "defaults: score='gradient'" in page
    with pytest.raises(SystemExit):
        main(["recipes", "gpss"])
    assert "did you mean 'gps'" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_page_says_what_it_must(name):
    recipe = sft.recipes.get(name)
    assert getattr(sft.recipes, name) is recipe
    assert recipe.paper and recipe.says and len(recipe.says) <= 100
    assert recipe.follows in ("paper", "code", "both", "description")
    assert recipe.decay_to in ("zero", "origin")
    assert "Returns" in recipe.make.__doc__
    assert set(recipe.defaults) <= set(recipe.settings)


def test_deltas_decay_to_where_they_began():
    to_origin = {recipe.name for recipe in sft.recipes.list() if recipe.decay_to == "origin"}
    assert {"neuroada", "shira", "spiel", "s2ft", "rosa"} <= to_origin
    assert not {"gps", "fish", "sift", "smt"} & to_origin


def test_a_density_takes_the_place_of_the_methods_own_budget(bert):
    plan = sft.recipes.get("gps")(bert.model, bert.batches, density=0.25)
    name = "bert.encoder.layer.0.output.dense.weight"  # 16 rows of 24
    rows = plan[name].index.long() // 24
    assert rows.bincount().tolist() == [6] * 16
    assert sft.recipes.get("fish")(bert.model, bert.batches, budget=7, scope="layer")[name].nnz(
        (16, 24)
    ) == 7  # fmt: skip


def test_what_trains_beside(bert):
    for also in ("classifier.*", ["classifier.*"], {"classifier.*": "all"}):
        plan = sft.recipes.get("gps")(bert.model, bert.batches, also=also)
        assert plan["classifier.weight"] == plan["classifier.bias"] == "all" and len(plan) > 3


def test_wrong_names_are_refused_with_the_way_out(bert):
    with pytest.raises(ValueError, match="no 'lifd'"):
        sft.recipes.get("lifd")
    with pytest.raises(AttributeError, match="lifd"):
        sft.recipes.lifd  # noqa: B018
    with pytest.raises(TypeError, match="denisty: 'gps' has no such setting; did you mean 'densi"):
        sft.recipes.get("gps")(bert.model, bert.batches, denisty=0.1)
    with pytest.raises(ValueError, match="name: there is a recipe 'gps' already"):
        sft.recipes.recipe("gps", "mine")
    with pytest.raises(ValueError, match="follows"):
        sft.recipes.recipe("other", "mine", follows="nobody")
    with pytest.raises(ValueError, match="batches"):
        sft.recipes.get("gps")(bert.model)


def test_a_recipe_of_ones_own(bert):
    @sft.recipes.recipe("of_tests", "nobody", {"wanted": "*query.weight"})
    def mine(model, batches, *, wanted):
        """weights by a pattern. Returns the plan."""
        return sft.Plan.match(model, {wanted: "all"})

    try:
        plan = sft.recipes.get("of_tests")(bert.model)
        assert len(plan) == 2 and "of_tests" in str(sft.recipes.list())
    finally:
        del RECIPES["of_tests"]


def test_an_adapter_of_peft_by_the_name_of_a_recipe(bert):
    peft = pytest.importorskip("peft")
    from sparse_ft.peft import SelectiveConfig

    expected = sft.recipes.get("gps")(bert.model, bert.batches, density=0.1)
    config = SelectiveConfig(recipe="gps", batches=bert.batches, density=0.1)
    model = peft.get_peft_model(copy.deepcopy(bert.model), config)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == sum(len(what) for what in expected.values())
    with pytest.raises(ValueError, match="did you mean 'gps'"):
        SelectiveConfig(recipe="gpss")
    with pytest.raises(ValueError, match="structure"):
        SelectiveConfig(recipe="gps", structure="rows")
    with pytest.raises(TypeError, match="recipe"):
        SelectiveConfig(recipe=3)
