"""What `finetune` says of a run that has learnt nothing, and how long it trains by default."""

import json

import pytest

from sparse_ft.cli.config import Config
from sparse_ft.cli.data import Rows
from sparse_ft.cli.judging import learnt_nothing
from sparse_ft.cli.training import LEAST_STEPS, MOST_EPOCHS, epochs_of


def made(**more) -> Config:
    document = {"model": "m", "data": {"train": "r.csv"}, **more}
    return Config.model_validate(document)


def logged(*losses: float) -> list[dict[str, float]]:
    return [{"loss": loss} for loss in losses]


def test_a_run_that_learns_nothing_is_told_with_its_learning_rate(command, rows, tmp_path, encoder):
    line = f"finetune --model {encoder} --train {rows} --validation 0.25 --set training.cpu=true"
    line += " --density 0.3 --set training.log_every=5 --json"
    idle = command(*line.split(), "--steps", 20, "--lr", "1e-9", "--output", tmp_path / "idle")
    assert idle.code == 0, idle.err
    told = json.loads(idle.out)
    assert "learnt next to nothing" in told["warning"] and "1e-09" in told["warning"]
    assert f"sparse-ft: warning: {told['warning']}" in idle.err
    assert json.loads((tmp_path / "idle" / "results.json").read_text()) == told
    done = command(*line.split(), "--steps", 40, "--lr", "2e-2", "--output", tmp_path / "done")
    assert "warning" not in json.loads(done.out), done.err


def test_losses_and_accuracy_are_held_against_knowing_nothing():
    even = Rows([{"label": "a"}, {"label": "b"}] * 10, [{"label": "a"}, {"label": "b"}] * 5)
    fine, coin = {"accuracy": 0.9}, {"accuracy": 0.5}
    told = learnt_nothing(made(), even, logged(0.7, 0.693, 0.69, 0.69), fine)
    assert "0.690" in told and "0.693" in told and "0.001: try 0.0003 and 0.003" in told
    assert learnt_nothing(made(), even, logged(0.7, 0.69, 0.6, 0.5), fine) is None
    assert "always answering 'a'" in learnt_nothing(made(), even, logged(0.1), coin)
    # Of ten rows nine are of one class: as good as always that is nothing.
    rare = Rows([{"label": "a"}] * 9 + [{"label": "b"}], [{"label": "a"}] * 9 + [{"label": "b"}])
    assert "0.900" in learnt_nothing(made(), rare, logged(0.2), {"accuracy": 0.9})
    assert learnt_nothing(made(), rare, logged(0.2), None) is None
    text = made(task="causal-lm")
    assert learnt_nothing(text, even, logged(3.0, 2.9, 2.9, 2.8), None) is None
    assert "3.000 at first" in learnt_nothing(text, even, logged(3.0, 3.1, 3.0, 3.2), None)
    assert learnt_nothing(text, even, logged(3.0), None) is None  # no trend to see


def test_few_rows_are_passed_over_more_often():
    steps_of = {rows: epochs_of(made(), rows) * -(-rows // 16) for rows in (200, 1350, 20_000)}
    assert all(steps >= LEAST_STEPS for steps in steps_of.values())
    assert epochs_of(made(), 20_000) == 3 and epochs_of(made(), 30) == MOST_EPOCHS
    assert epochs_of(made(training={"epochs": 2}), 200) == 2
    assert epochs_of(made(task="causal-lm"), 200) == 3
    assert epochs_of(made(), 1600, processes=4) == 10


def test_accumulated_batches_are_averaged(command, config, tmp_path):
    """The same rows in one batch, and in two that are accumulated: the same loss and steps."""
    losses = []
    for size, batches in ((8, 1), (4, 2)):
        run = tmp_path / f"run-{size}"
        asked = ("--batch-size", size, "--set", f"training.accumulate={batches}", "--output", run)
        done = command("finetune", config, *asked, "--steps", 1, "--json", "--lr", 1e-6)
        losses.append(json.loads(done.out)["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)  # dropout draws otherwise
