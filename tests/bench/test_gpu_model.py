"""The stage of bench/gpu.sh that takes steps of models, at a tiny size on a CPU."""

import pytest
import torch
from helpers.gpu_rows import CPU, found

from bench.gpu_results import OK, RED, SHORT, SKIPPED, Results


def test_ways_to_train_at_a_tiny_size(folder, monkeypatch):
    pytest.importorskip("transformers")
    from bench import gpu_model, gpu_steps

    ways = (gpu_model.LORA, "columns lean", "columns in backward", "blocks", "SHiRA r32")
    assert set(ways) <= set(gpu_model.WAYS)
    monkeypatch.setattr(gpu_model, "WAYS", ways)
    compared = (gpu_model.LORA, "entries graph")
    assert set(compared) < set(gpu_steps.WAYS)
    monkeypatch.setattr(gpu_steps, "WAYS", compared)
    assert gpu_model.main(["--device", "cpu", "--size", "tiny", "--seconds", "0"]) == 0
    steps = [row for row in found(folder, "model") if row.case == "five fp32 steps"]
    assert [(row.variant, row.status) for row in steps] == [(way, OK) for way in compared]
    rows = {row.variant: row for row in found(folder, "model") if row not in steps}
    assert set(rows) == {"replay", *gpu_model.WAYS}
    assert all(row.status in (OK, SKIPPED) for row in rows.values())
    trained = [
        float(row.note.split(" M train")[0].split()[-1]) for row in rows.values() if row.value
    ]
    assert max(trained) <= 1.3 * min(trained)


@pytest.mark.parametrize("wrong", ["losses", "moved", "nothing moved", "error"])
def test_steps_that_are_not_those_of_the_cpu_are_red(folder, monkeypatch, wrong):
    pytest.importorskip("transformers")
    from bench import gpu_steps

    ones = torch.ones(gpu_steps.STEPS)
    right = gpu_steps.Run(ones, ones)
    found_there = {
        "losses": gpu_steps.Run(ones * (1 + 1e-4), ones),
        "moved": gpu_steps.Run(ones, ones * 1.01),
        "nothing moved": gpu_steps.Run(ones, ones * 0),
    }
    runs = iter([found_there.get(wrong), right])

    def steps(way, device):
        if wrong == "error":
            raise RuntimeError("no kernel image")
        return next(runs)

    monkeypatch.setattr(gpu_steps, "steps", steps)
    gpu_steps.check("columns", CPU, Results())
    (row,) = found(folder, "model")
    assert row.status == RED and ("no kernel image" in row.note) == (wrong == "error")


@pytest.mark.parametrize("wrong", [None, "lr", "nothing"])
def test_replayed_steps_are_compared_with_eager_ones(folder, monkeypatch, wrong):
    """Red where a replay keeps the learning rate of the capture, or where there is no step at all
    to compare.
    """
    pytest.importorskip("transformers")
    from bench import gpu_model

    if wrong == "lr":
        monkeypatch.setattr(gpu_model, "captured", lambda step, device: lambda: None)
    if wrong == "nothing":
        monkeypatch.setattr(gpu_model, "SCHEDULE", ())
    results = Results()
    gpu_model.check_replay(CPU, results)
    (row,) = found(folder, "model")
    assert row.status == (RED if wrong else OK) and results.red == bool(wrong)


def test_no_transformers_is_a_clear_line(folder, monkeypatch):
    from bench import gpu_model

    monkeypatch.setattr(gpu_model.importlib.util, "find_spec", lambda name: None)
    assert gpu_model.main(["--device", "cpu", "--size", "tiny"]) == 0
    (row,) = found(folder, "model")
    assert row.status == SKIPPED and row.note.startswith("transformers is not installed")


def test_a_missing_library_and_a_failing_way_cost_their_own_row(folder):
    from bench import gpu_model

    def how(name, way):
        raise (
            gpu_model.Unavailable("peft: not here")
            if way == "LoRA r32"
            else RuntimeError("cannot\ncapture")
        )

    results = Results()
    for way in ("LoRA r32", "columns", "columns graph"):
        assert gpu_model.measure("tiny", way, results, how) is None
    assert [row.status for row in found(folder, "model")] == [SKIPPED, RED, SHORT]
    slow = dict(value=2.0, p20=2.0, p80=2.0, rounds=1, gib=1.0, loss=3.0, trained=5)
    for way in ("columns", "entries"):
        gpu_model.measure("tiny", way, results, lambda *_: slow, {**slow, "value": 1.0})
    assert [row.status for row in found(folder, "model")[3:]] == [SHORT, OK]
