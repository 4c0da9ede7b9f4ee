"""The two calls of bench/gpu.sh: budgets in one table, rows as they are known, cuts at any moment.

Stages here are faked: what they run counts rows down in a few milliseconds each.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import gpu_build, gpu_calls, gpu_memcheck, gpu_results, gpu_tests
from bench.gpu_calls import Stage
from bench.gpu_results import OK, RED, SKIPPED, Results

ROOT = Path(__file__).resolve().parents[2]
CALLS_OF_A_DEVICE = 600  # seconds that one command may run there
FILES = 8  # that come back from it
IN_ALL = 15 * 60

# A stage that writes a row every few milliseconds, and says so in a line of its own beside.
FAKE = """
import sys, time
from bench.gpu_results import Results
for number in range(int(sys.argv[2])):
    Results().add(sys.argv[1], f"row {number}", value=float(number))
    print("wrote", number, flush=True)
    time.sleep(0.004)
"""
# A script of two such stages.
SCRIPT = """
import os, sys
from bench import gpu_calls, gpu_results
gpu_calls.STAGES = tuple(
    gpu_calls.Stage(name, 1, 60.0, ("-c", {fake!r}, name, "4000"), "") for name in ("one", "two")
)
gpu_calls.chosen.__defaults__ = (gpu_calls.STAGES,)
gpu_calls.why_not = lambda device: ""
sys.exit(gpu_calls.main([]))
"""


def fake(name, rows=3, seconds=60.0, call=1):
    return Stage(name, call, seconds, ("-c", FAKE, name, str(rows)), "")


def run(stages, folder, environment=None, **keywords):
    results = Results()
    commands = lambda stage: [sys.executable, *stage.command]  # noqa: E731
    gpu_calls.run_stages(stages, commands, results, folder, environment or {}, **keywords)
    return gpu_results.read(folder)


# The table.


def test_the_budgets_fit_into_two_commands_and_fifteen_minutes():
    for call, limit in gpu_calls.LIMITS.items():
        mine = sum(stage.seconds for stage in gpu_calls.STAGES if stage.call == call)
        assert mine + gpu_calls.FOR_THE_TABLE <= limit < CALLS_OF_A_DEVICE
    assert sum(gpu_calls.LIMITS.values()) < IN_ALL
    assert gpu_build.CUDA_SECONDS + gpu_build.OTHER_SECONDS < gpu_calls.STAGES[0].seconds


def test_a_call_leaves_few_files():
    """A log a stage, two of rows, and after the first call Triton's cache."""
    for call in gpu_calls.LIMITS:
        logs = [stage for stage in gpu_calls.STAGES if stage.call == call]
        assert len(logs) + 2 + (call == 1) <= FILES


def test_each_stage_has_one_name_and_a_command_that_starts():
    names = [stage.name for stage in gpu_calls.STAGES]
    assert len(set(names)) == len(names)
    for stage in gpu_calls.STAGES:
        assert stage.command[0] == "-m" and stage.about
        assert (ROOT / Path(*stage.command[1].split("."))).with_suffix(".py").exists()


def test_stages_are_chosen_by_their_call_or_their_name():
    of_call = [stage.name for stage in gpu_calls.chosen(["2"])]
    assert of_call == ["ready", "memcheck", "repeats", "kernels", "graph", "tests"]
    assert [stage.name for stage in gpu_calls.chosen(["ops", "truth"])] == ["ops", "truth"]
    assert len(gpu_calls.chosen([])) == len(gpu_calls.STAGES)
    with pytest.raises(ValueError, match="no stage opps.*truth"):
        gpu_calls.chosen(["opps"])


def test_an_environment_changes_a_line_of_the_table():
    assert gpu_calls.seconds_of(fake("ops"), {"BUDGET_OPS": "7"}) == 7
    assert gpu_calls.seconds_of(fake("ops"), {"BUDGET_MODEL": "7"}) == 60


# Rows and budgets.


def test_stages_run_in_order_and_leave_logs(folder, capfd):
    rows = run([fake("one"), fake("two")], folder)
    wanted = [f"row {number}" for number in range(3)] + ["ended within its 60 s"]
    for stage in ("one", "two"):
        assert [row.case for row in rows if row.stage == stage] == wanted
    assert [row.stage for row in rows] == ["one"] * 4 + ["two"] * 4
    assert rows[3].value > 0 and "s of processors" in rows[3].note
    said = capfd.readouterr().out
    assert said.count("wrote 2") == 2
    assert (folder / "two.log").read_text() in said


def test_a_stage_past_its_seconds_keeps_its_rows_and_the_next_one_runs(folder):
    rows = run([fake("long", 100_000, seconds=1.5), fake("next")], folder)
    *known, last = [row for row in rows if row.stage == "long"]
    assert [row.case for row in known] == [f"row {n}" for n in range(len(known))]
    assert last.status == RED and "ran past its 1.5 s" in last.case
    assert [row.case for row in rows if row.stage == "next"][:3] == ["row 0", "row 1", "row 2"]


def test_a_call_without_time_skips_what_remains(folder):
    ticks = iter([0.0, 0.0, 0.0, 1.0])
    rows = run([fake("one", 1), fake("late", 1)], folder, clock=lambda: next(ticks, 558.0))
    assert [row.status for row in rows if row.stage == "late"] == [SKIPPED]
    assert "no time is left" in rows[-1].case


def test_what_a_stage_starts_ends_with_it(folder):
    """Of a stage that is cut, a process of its own is not left to run beside the next stage."""
    mark = folder / "alive"
    inner = f"while :; do echo x >> {mark}; sleep 0.01; done"
    command = ["sh", "-c", f"sh -c '{inner}' & wait"]
    for seconds in (1.0, 10.0, 60.0):  # a machine with much to do begins late
        stage = fake("parent", seconds=seconds)
        gpu_calls.run_stages([stage], lambda _: command, Results(), folder, {})
        if mark.exists():
            break
    size = mark.stat().st_size
    time.sleep(0.2)
    assert size and mark.stat().st_size == size


@pytest.mark.parametrize(("status", "words"), [(3, "status 3"), (42, "memory checker")])
def test_a_stage_that_fails_is_red(folder, status, words):
    (row,) = run([Stage("bad", 1, 60.0, ("-c", f"raise SystemExit({status})"), "")], folder)
    assert row.status == RED and words in row.case


# Cuts.


def start_script(folder):
    environment = {**os.environ, "RESULTS": str(folder), "PYTHONPATH": str(ROOT), "DEVICE": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(fake=FAKE)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def table(folder, capsys):
    capsys.readouterr()
    gpu_results.main(["table"])
    return capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["asked", "killed"])
def test_a_script_that_is_cut_anywhere_leaves_whole_rows_and_a_table(folder, number, capsys):
    """Asked to end, it prints the table itself; killed, `table` prints it. No row is half a row,
    and none is missing before the last.
    """
    generator = random.Random(int(number))
    for cut in range(3):
        where = folder / str(cut)
        script = start_script(where)
        limit = time.monotonic() + 240
        wanted = generator.randrange(1, 120)
        while len(gpu_results.read(where)) < wanted and time.monotonic() < limit:
            time.sleep(0.002)
        script.send_signal(number)
        said, _ = script.communicate(timeout=300)
        after = (where / "results.jsonl").read_bytes()
        rows = gpu_results.read(where)
        assert len(rows) == after.count(b"\n") >= wanted
        named = [row.case for row in rows if row.stage == "one" and row.case.startswith("row")]
        assert named == [f"row {n}" for n in range(len(named))]
        os.environ["RESULTS"] = str(where)
        shown = table(where, capsys)
        assert f"== one: {len(named)} ok" in shown
        if number == signal.SIGTERM:
            assert shown in said and "stopped by SIGTERM" in said
            assert script.returncode == 128 + signal.SIGTERM
        time.sleep(0.1)  # whoever still ran would write
        assert (where / "results.jsonl").read_bytes() == after


def test_half_a_line_is_no_row(folder):
    Results().add("ops", "whole")
    with (folder / "results.jsonl").open("a") as file:
        file.write('{"stage": "ops", "ca')
    assert [row.case for row in gpu_results.read(folder)] == ["whole"]


def test_processes_that_write_together_leave_whole_rows(folder):
    children = [
        subprocess.Popen([sys.executable, "-c", FAKE, name, "50"], cwd=ROOT, env=os.environ)
        for name in ("one", "two")
    ]
    for child in children:
        assert child.wait(timeout=300) == 0
    rows = gpu_results.read(folder)
    assert len(rows) == 100
    lines = (folder / "results.csv").read_text().splitlines()
    assert len(lines) == 101 and lines[0].startswith("stage,case") and len(set(lines)) == 101


def test_results_go_where_a_machine_takes_its_files_from(monkeypatch, tmp_path):
    monkeypatch.delenv("RESULTS", raising=False)
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu_results.folder() == tmp_path


# The build.


def test_a_build_that_is_carried_is_taken_when_its_sources_are_these(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_build, "PACKAGE", tmp_path / "package")
    monkeypatch.setattr(gpu_build, "KERNELS", tmp_path / "package" / "kernels")
    monkeypatch.setattr(gpu_build, "look", lambda: "")
    (tmp_path / "package").mkdir()
    carried = tmp_path / "carried"
    carried.mkdir()
    assert gpu_build.take_carried(carried) == "none is there"
    (carried / gpu_build.EXTENSION).write_bytes(b"built")
    (carried / gpu_build.SOURCES).write_text("others")
    assert "other sources" in gpu_build.take_carried(carried)
    (carried / gpu_build.SOURCES).write_text(gpu_build.fingerprint() + "\n")
    assert gpu_build.take_carried(carried) == ""
    assert (tmp_path / "package" / gpu_build.EXTENSION).read_bytes() == b"built"
    assert (tmp_path / "package" / "kernels").is_symlink()
    monkeypatch.setattr(gpu_build, "look", lambda: "status 1")  # as on another system
    assert gpu_build.take_carried(carried) == "status 1"
    assert list((tmp_path / "package").iterdir()) == []


@pytest.mark.parametrize("compiles", [True, False])
def test_a_cuda_build_that_fails_is_made_without(folder, monkeypatch, compiles):
    asked = []

    def install(seconds, **settings):
        asked.append(settings)
        return "" if compiles or settings["SPARSE_FT_CUDA"] == "0" else "status 1"

    monkeypatch.setattr(gpu_build, "install", install)
    monkeypatch.setattr(gpu_build, "look", lambda: "")
    monkeypatch.setattr(gpu_build.shutil, "which", lambda name: name)
    monkeypatch.setattr(gpu_build, "architecture", lambda: "90")
    assert gpu_build.build_here(Results())
    assert [each["SPARSE_FT_CUDA"] for each in asked] == (["1"] if compiles else ["1", "0"])
    assert {each["SPARSE_FT_WERROR"] for each in asked} == {"0"}
    notes = [row.case for row in gpu_results.read(folder)]
    assert any("no CUDA kernels: status 1" in note for note in notes) != compiles


def test_a_command_that_takes_too_long_is_ended():
    assert gpu_build.finishes(["sleep", "60"], 0.2) == "it took more than 0.2 s"
    assert gpu_build.finishes(["false"], 60) == "status 1" and not gpu_build.finishes(["true"], 60)


# The memory checker.

CLEAN = "memcheck ok a case\n"
ERROR = "========= Invalid __global__ write of size 4 bytes\n"


@pytest.mark.parametrize(
    ("output", "status", "words"),
    [
        (CLEAN + gpu_memcheck.PLANTED + "\n" + ERROR, OK, "no errors"),
        (CLEAN + ERROR + gpu_memcheck.PLANTED + "\n" + ERROR, RED, "1 errors, the first: Invalid"),
        (CLEAN + gpu_memcheck.PLANTED + "\n========= ERROR SUMMARY: 0 errors\n", RED, "not seen"),
        (CLEAN, RED, "did not come to their end"),
    ],
    ids=["clean", "error", "blind", "cut"],
)
def test_a_checker_is_believed_when_it_sees_the_plant(output, status, words):
    found, note = gpu_memcheck.verdict(output)
    assert found == status and words in note


# Tests on a GPU, file by file.


def test_files_of_tests_run_side_by_side_with_a_row_each(folder):
    sources = {
        "test_well.py": "def test_a(): pass\ndef test_b(): pass\n",
        "test_ill.py": "def test_c(): assert False\ndef test_d(): pass\n",
        "test_not.py": "import pytest\n@pytest.mark.skip\ndef test_e(): pass\n",
        "test_broken.py": "raise SystemExit(9)\n",
    }
    for name, source in sources.items():
        (folder / name).write_text(source)
    groups = [[folder / "test_well.py", folder / "test_ill.py"], [folder / "test_not.py"]]
    work = gpu_tests.Work([*groups, [folder / "test_broken.py"]])
    assert not gpu_tests.run("kernels", work, 2, Results())
    rows = {row.case: row for row in gpu_results.read(folder)}
    assert (rows["test_well"].status, rows["test_well"].note) == (OK, "2 passed")
    assert rows["test_ill"].status == RED
    assert rows["test_ill"].note == "1 failed, 1 passed: test_c"
    assert rows["test_not"].status == SKIPPED
    assert rows["test_broken"].status == RED and "pytest ended with" in rows["test_broken"].note


def test_what_the_stages_run_is_there():
    assert len(gpu_tests.kernels().groups) >= 10
    assert ROOT / "tests/optim/test_captured.py" in sum(gpu_tests.graph().groups, [])
    files = {path.name for path in sum(gpu_tests.tests(14).groups, [])}
    assert {"test_masked_adamw.py", "test_selected_wgrad.py"} <= files


def test_groups_have_about_one_size(tmp_path):
    for number, size in enumerate((50, 40, 30, 20, 10)):
        (tmp_path / f"{number}").write_text("x" * size)
    groups = gpu_tests.split(sorted(tmp_path.iterdir()), 2)
    assert [sum(path.stat().st_size for path in group) for group in groups] == [80, 70]
