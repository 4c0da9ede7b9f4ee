"""The learning rates that recipes name are those of the committed table of methods."""

from pathlib import Path

import pytest

import sparse_ft as sft
from bench.methods import rows as rows_of
from bench.methods.methods import recipes
from bench.methods.tasks import SETTINGS
from bench.methods.work import Rows

TABLE = Path(__file__).resolve().parents[2] / "bench" / "results" / "methods.csv"
TASKS = {"reviews": ("text-classification", True), "text": ("causal-lm", False)}


def in_two_digits(rate):
    return None if rate is None else float(f"{rate:.2g}")


@pytest.mark.parametrize("task", TASKS)
def test_rates_are_the_best_of_the_table(task):
    called, larger_is_better = TASKS[task]
    setting = SETTINGS[task]
    every = rows_of.read(TABLE)
    rows = [row for row in every if (row.task, row.setting) == (task, str(setting))]
    found = Rows(rows, larger_is_better)
    for method in recipes(setting.steps):
        if method.name == method.recipe:
            told = sft.recipes.get(method.recipe).learning_rate(called)
            assert told == in_two_digits(found.best_rate(method.name)), method.name


def test_of_what_was_not_measured_there_is_none():
    assert sft.recipes.get("esft").learning_rate() is None
    assert "not measured for a small encoder" in sft.recipes.get("esft").page
    with pytest.raises(ValueError, match="task: .*'text-classification'.*'vision'"):
        sft.recipes.get("shira").learning_rate("vision")
