"""Each op is measured in a process of its own.

An interrupted command ends it, and keeps what is finished.
"""

import time
import types

import pytest

pytest.importorskip("tqdm")

from bench import main, runner, suite  # noqa: E402
from bench.records import Must, Record, read  # noqa: E402


@pytest.fixture
def light(monkeypatch):
    """A fork server that imports no more than these tests need."""
    monkeypatch.setattr(runner, "PRELOAD", [])


def test_an_op_is_measured_in_a_child_that_tells_how_far_it_is(light):
    told = []
    records, musts = runner.run_apart(
        suite.run_alone,
        "gather_selected",
        "tiny",
        1,
        hear=lambda seconds, what: told.append((seconds, what)),
    )
    names = [case.name for case in suite.module_of("gather_selected").cases("tiny")]
    assert [what for seconds, what in told if seconds] == names and {
        r.threads for r in records
    } == {1}
    assert not musts and {r.case for r in records} == {*names, "ceilings"}


def test_a_child_that_fails_says_why(light):
    with pytest.raises(runner.RunFailed, match="bench_nonsense"):
        runner.run_apart(suite.run_alone, "nonsense", "tiny", 1, hear=lambda seconds, what: None)


def test_an_interrupt_ends_the_child(light):
    begun = []

    def interrupt(seconds, what):
        begun.append(time.monotonic())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run_apart(suite.run_alone, "gather_selected", "tiny", 1, hear=interrupt)
    assert time.monotonic() - begun[0] < 9  # killed: it is waited for, ten seconds at most
    assert not [child for child in runner.multiprocessing.active_children() if child.is_alive()]


@pytest.mark.parametrize(("how", "status"), [(KeyboardInterrupt, 130), (runner.RunFailed, 1)])
def test_what_is_finished_is_kept(monkeypatch, tmp_path, capsys, how, status):
    def measured(function, op, size, threads, hear):
        if op == "layer":
            raise how("the reason")
        record = Record(op, "a case", "ours", threads, p20=1.0, p50=1.0, p80=1.0)
        return [record], [Must(op, "key", "a line", threads, 2.0, 1.0)]

    monkeypatch.setattr(
        main, "module_of", lambda op: types.SimpleNamespace(OP=op, TESTS=[], cases=lambda size: [])
    )
    monkeypatch.setattr(main, "run_apart", measured)
    assert main.main(["--op", "linear,layer", "--threads", "1", "--out", str(tmp_path)]) == status
    shown, name = capsys.readouterr(), main.machine.name()
    assert "1 of 1 pass" in shown.out and "not measured: layer" in shown.err
    assert [r.op for r in read(tmp_path / f"{name}.csv", Record)] == ["linear"]
    assert "a line" in (tmp_path / f"{name}.md").read_text() and not list(tmp_path.glob("*.new"))
