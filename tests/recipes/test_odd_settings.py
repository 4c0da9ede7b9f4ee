"""What a recipe cannot be told, and models that it cannot work on: refused by the name of what is
wrong, before anything is changed.
"""

import copy
import itertools

import pytest
import torch
from helpers import choosing_models
from torch import nn
from torch.utils.data import DataLoader

import sparse_ft as sft
from sparse_ft.recipes import values
from sparse_ft.recipes.recipe import RECIPES

NO_SHARE = (0, 1.5, -0.1, "a", float("nan"), True)
NO_COUNT = (0, -1, 2.5, "a", True)
# Of the settings that mean the same in every recipe, and of those of single ones.
WRONG = {
    "density": NO_SHARE,
    "share": NO_SHARE,
    "max_batches": (0, -1, 2.5),
    "seed": (1.5, "a", None),
    "targets": (3, "nothing*", []),
    "loss": (3,),
    "steps": NO_COUNT,
    "every": NO_COUNT,
    "epoch": NO_COUNT,
    "layers": (*NO_COUNT, 99),
    "heads": NO_COUNT,
    "modules": NO_COUNT,
    "columns": NO_COUNT,
    "seen": NO_COUNT,
    "probe": NO_COUNT,
    "candidates": NO_COUNT,
    "filter_rank": NO_COUNT,
    "total": NO_COUNT,
    "warm": (-1, 2.5),
    "lr": (0.0, -1.0, "a", float("nan")),
    "penalty": ("a",),
    "alpha": ("a",),
    "weight": ("a",),
    "begin": (-1, 2, 0.6),
    "end": (0, 2),
    "dropout": (-1, 1.5),
    "frozen": (-1, 2.0),
    "biases": (-1, 2.0),
    "collect": (0, 50),
    "order": ("x",),
}
# Recipes that want more of a model than this one has say so first.
ELSEWHERE = ("asymmetric", "ceft", "esft", "lora_sp", "rosa", "roselora", "routers", "sketched")
# `select` names its own argument, which the recipe passes on.
PASSED_ON = {("paca", "density"), ("losia", "density")}


@pytest.fixture(scope="module")
def bert():
    return choosing_models.case("BERT")


def state(model):
    return [(p.requires_grad, p._version, p.grad) for p in model.parameters()]


@pytest.mark.parametrize("name", sorted(set(RECIPES) - set(ELSEWHERE)))
def test_a_wrong_setting_is_named_and_nothing_is_changed(name, bert):
    recipe, before = RECIPES[name], state(bert.model)
    needs = {"base": bert.model.state_dict()} if "base" in recipe.settings else {}
    for setting in recipe.settings:
        for value in WRONG.get(setting, ()):
            if setting == "begin" and value == 0.6:
                needs["end"] = 0.5
            with pytest.raises((ValueError, TypeError)) as error:
                recipe(bert.model, bert.batches, **needs, **{setting: value})
            told = str(error.value)
            is_named = setting in told or (name, setting) in PASSED_ON
            assert is_named and "unsupported operand" not in told, (setting, value, told)
            needs.pop("end", None)
    assert state(bert.model) == before


@pytest.mark.parametrize("batches", [{"input_ids": torch.zeros(1, 2)}, "text", 3])
def test_what_is_no_list_of_batches_is_refused(batches, bert):
    for name in ("gps", "spiel", "neuroada", "lofit"):
        with pytest.raises(TypeError, match="batches: expected an iterable of batches"):
            RECIPES[name](bert.model, batches)


def test_a_seed_may_be_numpys(bert):
    numpy = pytest.importorskip("numpy")
    for name in ("hft", "roast", "spiel", "shira"):
        made = [
            RECIPES[name](bert.model, bert.batches, seed=kind(3)) for kind in (int, numpy.int64)
        ]
        plans = [each if isinstance(each, sft.Plan) else each.plan for each in made]
        assert plans[0] == plans[1]


def test_a_model_that_is_none_is_refused():
    for name in ("gps", "lisa", "esft"):
        with pytest.raises(TypeError, match=r"model: expected an nn.Module, got"):
            RECIPES[name]("bert", [])


def test_settings_of_ones_own_recipe_are_its_own(bert):
    @sft.recipes.recipe("of_odd_settings", "nobody")
    def mine(model, batches, *, layers, heads=(), share="some", seed=None, density=None):
        """whatever. Returns the plan."""
        assert batches == {"in": 3} and density == "high"
        return sft.Plan.match(model, {layers: "all"})

    try:
        own = sft.recipes.get("of_odd_settings")
        assert own(bert.model, {"in": 3}, layers="*query.weight", heads=[3], density="high")
    finally:
        del RECIPES["of_odd_settings"]


def test_a_recipe_without_what_it_wants_says_a_way_out_that_it_has(bert):
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    ways_out = {
        "asymmetric": "add an adapter with PEFT first$",
        "routers": "sft.Plan.match",
        "badam": "sft.Rotate",
        "attention_only": "targets=$",
    }
    for name, way_out in ways_out.items():
        with pytest.raises(ValueError, match=way_out):
            RECIPES[name](plain, [torch.randn(3, 4)])
    net = choosing_models.case("convnet")
    with pytest.raises(ValueError, match="targets: 'first.weight' is not the weight of a linear"):
        RECIPES["sparsegrad"](
            net.model, net.batches, targets="first.*", loss=lambda m, b: m(**b)["loss"]
        )


def test_a_process_that_cannot_start_leaves_the_model_as_it_was():
    model = nn.Linear(6, 3)
    before = copy.deepcopy(model)
    process = RECIPES["greentrainer"](
        model, [torch.randn(4, 6)], loss=lambda m, b: m(b).square().mean(), targets="weight"
    )
    with pytest.raises(ValueError, match="budget"):
        process.start(model, 1e-3)  # half of the FLOPs are less than its only tensor takes
    assert type(model) is nn.Linear and torch.equal(model.weight, before.weight)
    assert all(p.requires_grad for p in model.parameters())
    sft.convert(model, {"weight": sft.Columns([1])})


def test_batches_are_taken_one_by_one_and_no_more_than_asked_for(bert):
    taken = []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield bert.batches[number % 2]

    RECIPES["spt"](bert.model, endless(), max_batches=3)
    assert len(taken) <= 4
    taken.clear()
    process = RECIPES["spiel"](bert.model, endless(), density=0.1)
    assert len(taken) == 1 and process is not None
    turns = values.cycled(endless())
    assert [next(turns) is bert.batches[number % 2] for number in range(3)] == [True] * 3


def test_a_loader_gives_eight_batches_and_turns_go_round():
    loader = DataLoader(torch.arange(40.0), batch_size=2)
    assert len(values.several(loader)) == 8 and len(values.several(loader, 3)) == 3
    assert values.several(None) is None
    turns = values.cycled([1, 2])
    assert [next(turns) for _ in range(5)] == [1, 2, 1, 2, 1]
    once = values.cycled(iter([1, 2]))
    assert [next(once) for _ in range(5)] == [1, 2, 1, 2, 1]
    for nothing in ([], iter([])):
        with pytest.raises(ValueError, match="at least one batch"):
            values.cycled(nothing)
