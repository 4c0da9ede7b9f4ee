"""The other subcommands: select, estimate, recipes, bench, doctor."""

import json

import sparse_ft as sft
from sparse_ft.cli.config import Config, Data, Training


def test_a_plan_of_select_is_what_finetune_trains(command, config, tmp_path):
    plan = tmp_path / "plan.safetensors"
    done = command("select", config, "--method", "gps", "--set", "settings={}", "--file", plan)
    assert done.code == 0 and "classifier.weight" in done.out, done.err
    more = ("--set", f"plan={plan}", "--set", "settings={}", "--steps", 1)
    assert command("finetune", config, *more).code == 0
    chosen, trained = sft.Plan.load(plan), sft.load_delta(tmp_path / "run").plan
    assert set(chosen) == set(trained) and len(chosen) > 4
    for name, what in chosen.items():
        assert what == trained[name] or what.digest == trained[name].digest


def test_estimate_prints_what_the_library_says(command, encoder, config):
    line = ("estimate", encoder, "--batch", 4, "--sequence", 16, "--lora", 0, "--lean")
    told = json.loads(command(*line, "--json").out)
    assert list(told) == ["full", "0.01 columns", "0.01 columns, lean"]
    assert told["full"]["optimizer_state"] > 10 * told["0.01 columns"]["optimizer_state"]
    assert "most at once" in command(*line).out


def test_recipes_lists_every_one_and_shows_a_page(command):
    told = json.loads(command("recipes", "--json").out)
    assert [each["name"] for each in told] == [each.name for each in sft.recipes.list()]
    assert "SpIEL" in command("recipes").out
    assert command("recipes", "lift").out.strip() == sft.recipes.get("lift").page


def test_bench_measures_beside_full_training(command, config, tmp_path):
    done = command("bench", config, "--steps", 2, "--json")
    assert done.code == 0, done.err
    full, ours = json.loads(done.out)
    assert full["share"] == 1.0 and ours["method"] == "select"
    assert ours["optimizer_bytes"] < 0.5 * full["optimizer_bytes"]
    assert ours["saved_bytes"] < full["saved_bytes"] and ours["seconds"] > 0
    assert not (tmp_path / "run").exists()


def test_every_key_of_a_config_is_explained(command):
    told = command("finetune", "--keys").out
    for part, at in ((Config, ""), (Data, "data."), (Training, "training.")):
        for name, field in part.model_fields.items():
            if name not in ("data", "training"):
                assert field.description and f"{at}{name} " in told, name


def test_doctor_says_what_serves_and_what_is_beside(command):
    told = json.loads(command("doctor", "--json").out)
    assert set(told["backends"]) == set(sft.backends())
    assert told["beside"]["transformers"] and told["sparse_ft"] == sft.__version__
    assert "served by" in command("doctor").out
