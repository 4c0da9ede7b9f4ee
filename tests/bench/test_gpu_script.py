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

from bench import gpu_calls, gpu_pybind11, gpu_results
from bench.gpu_results import OK, RED, SHORT, SKIPPED, Results

ROOT = Path(__file__).resolve().parents[2]
STAGES = [stage.name for stage in gpu_calls.STAGES]


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
        words, env={**os.environ, **given}, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


# The script.


def test_a_dry_run_skips_every_stage_and_says_so(folder):
    status, said = script(folder)
    assert status == 0
    assert [row.stage for row in gpu_results.read(folder)] == STAGES
    assert said.count("no GPU that torch can use") == 2 * len(STAGES)  # as they come, in the table


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
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    status, said = script(folder, "memcheck", DEVICE="cpu", PATH=path)
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
