"""bench/gpu.sh and its parts where there is no GPU: it says what it leaves out, and the Python runs
at tiny sizes.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import cases, device, gpu_cases, gpu_checks, gpu_ops, gpu_pybind11, gpu_results, stats
from bench.gpu_results import OK, RED, SHORT, SKIPPED, Results

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["build", "test", "sanitize", "ops", "model"]
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RESULTS", str(tmp_path))
    monkeypatch.setenv("RUN", "this")
    return tmp_path


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def script(folder, *stages, **environment):
    given = {
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHON": sys.executable,
        "RESULTS": str(folder),
        "PYTHONPATH": str(ROOT),
        **environment,
    }
    words = ["bash", str(ROOT / "bench" / "gpu.sh"), *stages]
    done = subprocess.run(
        words, env={**os.environ, **given}, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


def found(folder, stage):
    return [row for row in gpu_results.read(folder) if row.stage == stage]


# The script.


def test_a_dry_run_skips_every_stage_and_says_so(folder):
    status, said = script(folder)
    assert status == 0
    assert [row.stage for row in gpu_results.read(folder)] == STAGES
    assert said.count("no GPU that torch can use") == len(STAGES)


def test_an_interpreter_without_torch_is_a_clear_line(folder):
    bare = folder / "python"
    bare.write_text(f'#!/bin/sh\n[ "$1" = -m ] && exec {sys.executable} "$@"\nexit 1\n')
    bare.chmod(0o755)
    status, said = script(folder, "ops", PYTHON=str(bare))
    assert status == 0 and f"{bare} has no torch" in said


def test_an_unknown_stage_is_refused(folder):
    status, said = script(folder, "opps")
    assert status == 2 and "no stage opps" in said


def test_a_missing_checker_is_a_line_and_not_a_stop(folder):
    status, said = script(
        folder, "sanitize", DEVICE="cpu", PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin"
    )
    assert status == 0 and "compute-sanitizer is not installed" in said and "1 skipped" in said


def test_a_stage_past_its_budget_is_red_and_its_log_is_there(folder):
    status, said = script(folder, "ops", DEVICE="cpu", BUDGET_OPS="0.2")
    assert status == 1 and "ran past its 0.2 s" in said and (folder / "ops.log").exists()


# Results.


def test_rows_are_on_disk_as_soon_as_they_are_known(folder, capsys):
    results = Results(device="cpu")
    results.add("ops", "a case", "ours", value=12.5, floor=10.0, fraction=0.8)
    with (folder / "results.csv").open() as file:
        assert [(row["case"], row["value"], row["run"]) for row in csv.DictReader(file)] == [
            ("a case", "12.5", "this")
        ]
    assert json.loads((folder / "results.jsonl").read_text())["device"] == "cpu"
    assert "12.5 us  80 % of its roofline" in capsys.readouterr().out


@pytest.mark.parametrize(("status", "code"), [(OK, 0), (SHORT, 0), (SKIPPED, 0), (RED, 1)])
def test_only_red_fails_and_only_of_this_run(folder, monkeypatch, status, code, capsys):
    results = Results()
    results.add("ops", "a", "ours")
    results.add("ops", "a", "library", note="left out of the table")
    results.add("ops", "b", "library", status, note="why")
    assert results.red == (status == RED)
    assert gpu_results.main(["table"]) == code
    said = capsys.readouterr().out.split("== ")[1]
    assert "left out" not in said and ("why" in said) == (status != OK)
    monkeypatch.setenv("RUN", "next")
    assert gpu_results.main(["table"]) == 0


# Cases, checks, timing.


def test_ops_at_tiny_sizes(folder):
    assert gpu_ops.main(["--device", "cpu", "--size", "tiny", "--seconds", "0.001"]) == 0
    rows = found(folder, "ops")
    assert {row.case for row in rows if row.variant == "ours"} == {
        case.name for case in gpu_cases.cases("tiny")
    }
    assert {row.case for row in rows if not row.variant} == {
        "ceiling copy",
        "ceiling l2",
        "ceiling gemm",
        "tiles",
    }
    assert all(row.value > 0 for row in rows if row.case != "tiles")


def test_a_wrong_result_is_red_and_has_no_time(folder, monkeypatch):
    real = gpu_cases.ops.selected_wgrad
    monkeypatch.setattr(gpu_cases.ops, "selected_wgrad", lambda *a, **k: real(*a, **k) * 1.1)
    assert (
        gpu_ops.main(
            ["--device", "cpu", "--size", "tiny", "--seconds", "0.001", "--only", "wgrad rows"]
        )
        == 1
    )
    (row,) = (row for row in found(folder, "ops") if row.variant)
    assert row.status == RED and row.value is None and "relative error 1.0" in row.note


def test_an_error_costs_its_own_case_only(folder, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu_cases.ops, "gather_selected", broken)
    assert (
        gpu_ops.main(
            ["--device", "cpu", "--size", "tiny", "--seconds", "0.001", "--only", "selected rows"]
        )
        == 1
    )
    assert [row.status for row in found(folder, "ops") if row.variant == "ours"] == [RED, OK]


def test_tiles_are_those_that_the_blocks_get():
    """Each entry of the sweep asks for a selection whose blocks have that very tile."""
    pytest.importorskip("triton")
    from sparse_ft.kernels.selected_wgrad_tables import panels

    from bench import gpu_tiles
    from sparse_ft.kernels import selected_wgrad_blocks

    for tile, (block, density) in gpu_tiles.BLOCKS.items():
        _, index, *size = cases.selection("blocks", cases.SQUARE, density, block).layout
        options = selected_wgrad_blocks._tile(block, panels(index, *size).width, 8)
        assert (options["BLOCK_P"], options["BLOCK_Q"]) == tile


def test_a_sweep_of_tiles(folder):
    """Each candidate is in force while it runs, the table is as before afterwards, and what fails
    or differs is a row.
    """
    pytest.importorskip("triton")
    from bench import gpu_tiles
    from sparse_ft.kernels import selected_wgrad_blocks as kernels

    tile, seen, default = (64, 256), [], kernels._tile_of(64, 256)
    fast, other, wrong = (64, 8, 4), (32, 8, 4), (64, 4, 3)

    def call():
        seen.append((kernels._tile_of(*tile), kernels.PERSISTENT_FROM))
        if kernels._tile_of(*tile) == other:
            raise RuntimeError("out of shared memory")
        return torch.full((3,), 2.0 if kernels._tile_of(*tile) == wrong else 1.0)

    candidates = {gpu_tiles.name(p): (p, False) for p in (default, fast, other, wrong)} | {
        "persistent": (default, True)
    }
    results = Results()
    gpu_tiles.measure(kernels, tile, candidates, call, CPU, 0.0, results)
    rows = {row.variant: row for row in found(folder, "ops")}
    assert set(rows) == set(candidates) and results.red
    assert (rows[gpu_tiles.name(other)].status, rows[gpu_tiles.name(wrong)].status) == (SHORT, RED)
    assert (
        "default" in rows[gpu_tiles.name(default)].note
        and sum("fastest" in row.note for row in rows.values()) == 1
    )
    assert (
        {(fast, 1e9), (default, 1e9), (default, 0)} <= set(seen)
        and kernels.TILES == {}
        and kernels.PERSISTENT_FROM == 4
    )


def test_repeats_are_alike(folder):
    assert gpu_checks.main(["--device", "cpu", "--repeats", "2"]) == 0
    assert len(found(folder, "test")) == len(gpu_cases.cases("tiny"))


@pytest.mark.parametrize("how", ["differs", "unwritten"])
def test_repeats_that_differ_are_red(folder, monkeypatch, how):
    """What a race does, and what is left in memory that was not written.

    NaN, whose payload would hide from ==.
    """
    results = iter(torch.arange(100.0))

    def racing(*_, **__):
        return (
            next(results).expand(4).clone()
            if how == "differs"
            else torch.full((4,), float("nan")) + next(results)
        )

    monkeypatch.setattr(gpu_cases.ops, "rms_norm_backward", racing)
    monkeypatch.setattr(
        gpu_checks,
        "cases",
        lambda size: [c for c in gpu_cases.cases(size) if c.name == "rms_norm_backward"],
    )
    assert gpu_checks.main(["--device", "cpu", "--repeats", "3"]) == (1 if how == "differs" else 0)
    if how == "unwritten":  # the same NaN each time: the comparison with the reference sees it
        assert (
            gpu_ops.main(
                [
                    "--device",
                    "cpu",
                    "--size",
                    "tiny",
                    "--seconds",
                    "0.001",
                    "--only",
                    "rms_norm_backward",
                ]
            )
            == 1
        )


def test_times_are_quantiles_of_all_rounds():
    calls = []

    def timer(call, repeats, clock):
        """A device's: it takes one call a sample and says what it took."""
        assert repeats == 1
        call()
        return float(len(calls))

    times = device.compare(
        {"a": lambda: calls.append("a")}, CPU, 60.0, most=3, timer=timer, shortest=0
    )
    assert calls == ["a"] * (2 + 3)  # two to warm up
    assert times == {"a": stats.Times(pytest.approx(3.4), 4.0, pytest.approx(4.6), 3)}
    assert times["a"].fields(1e3, "value")["value"] == 4000


def test_a_gpu_is_timed_by_its_events_one_call_a_sample(monkeypatch):
    def events(where):
        def sample(call, repeats, clock):
            assert repeats == 1 and where.type == "cuda"
            call()
            return 2.0

        return sample

    calls = []
    monkeypatch.setattr(device, "Events", events)
    times = device.compare({"a": lambda: calls.append("a")}, torch.device("cuda"), 0.0)
    assert times == {"a": stats.Times(2.0, 2.0, 2.0, 3)} and len(calls) == 3 + 3


@pytest.mark.parametrize("what", ["race", "overrun"])
def test_what_is_planted_compiles(what):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from bench import gpu_planted

    kernel = getattr(gpu_planted, what)
    signature = {"out_ptr": "*fp32", "count": "i32", "BLOCK": "constexpr"}
    signature = {name: kind for name, kind in signature.items() if name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs={"BLOCK": 256})
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


# The model stage.


def test_ways_to_train_at_a_tiny_size(folder, monkeypatch):
    pytest.importorskip("transformers")
    from bench import gpu_model

    ways = (gpu_model.LORA, "columns lean", "columns in backward", "blocks", "SHiRA r32")
    assert set(ways) <= set(gpu_model.WAYS)
    monkeypatch.setattr(gpu_model, "WAYS", ways)
    assert gpu_model.main(["--device", "cpu", "--size", "tiny", "--seconds", "0"]) == 0
    rows = {row.variant: row for row in found(folder, "model")}
    assert set(rows) == {"replay", *gpu_model.WAYS}
    assert all(row.status in (OK, SKIPPED) for row in rows.values())
    trained = [
        float(row.note.split(" M train")[0].split()[-1]) for row in rows.values() if row.value
    ]
    assert max(trained) <= 1.3 * min(trained)


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


def test_pybind11_from_the_headers_of_torch(tmp_path):
    """What setup.py asks of pybind11, and what CMakeLists.txt does: a module that imports."""
    package = gpu_pybind11.write(tmp_path)
    (tmp_path / "m.cpp").write_text(
        '#include <pybind11/pybind11.h>\nPYBIND11_MODULE(m, m) { m.attr("one") = 1; }\n'
    )
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(m LANGUAGES CXX)\nset(CMAKE_CXX_STANDARD"
        " 17)\nfind_package(Python REQUIRED COMPONENTS Interpreter"
        " Development.Module)\nfind_package(pybind11 CONFIG REQUIRED)\npybind11_add_module(m MODULE"
        " NO_EXTRAS m.cpp)\n"
    )
    asked = [sys.executable, "-c", "import pybind11; print(pybind11.get_cmake_dir())"]
    where = subprocess.run(
        asked, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    ).stdout.strip()
    assert where == str(package)
    build = tmp_path / "build"
    options = [f"-Dpybind11_DIR={where}", f"-DPython_EXECUTABLE={sys.executable}"]
    for command in (
        ["cmake", "-S", str(tmp_path), "-B", str(build), *options],
        ["cmake", "--build", str(build)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(
        [sys.executable, "-c", "import m; print(m.one)"], cwd=build, capture_output=True, text=True
    )
    assert done.stdout == "1\n"
