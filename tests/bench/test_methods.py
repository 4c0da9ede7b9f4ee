"""The table of methods: rows that survive being cut, the search for a rate, the paired test, and
the whole command in small.
"""

import math
from pathlib import Path

import pytest

for name in ("transformers", "peft", "tqdm"):
    pytest.importorskip(name)

from bench.methods import main, methods, rows, table, tasks, work  # noqa: E402
from bench.methods.rows import BYTES, RUN, Row  # noqa: E402
from bench.runner import RunFailed  # noqa: E402

SETTING = "a setting"


def row(method="gps", lr=1e-3, seed=0, kind=RUN, validation=0.5, test=0.5, **more):
    return Row("tiny", SETTING, kind, method, lr, seed, validation, test, **more)


def test_a_row_is_on_the_disk_at_once_and_the_last_of_a_key_counts(tmp_path):
    path = tmp_path / "deep" / "methods.csv"
    assert rows.read(path) == []
    first, other = row(failed="why, with a comma"), row(seed=1, kept=0.25, trainable=7)
    for each in (first, other, row(validation=0.75)):
        rows.append(path, each)
    found = rows.read(path)
    assert [each.validation for each in found] == [0.75, 0.5]
    assert found[1].trainable == 7 and found[1].kept == 0.25
    assert math.isnan(found[0].kept)


@pytest.mark.parametrize("cut", [1, 9, 40])
def test_a_line_that_was_cut_is_left_out_and_the_next_one_is_whole(tmp_path, cut):
    path = tmp_path / "methods.csv"
    rows.append(path, row())
    whole = path.read_bytes()
    rows.append(path, row(seed=1))
    path.write_bytes(path.read_bytes()[: len(whole) + cut])
    assert [each.seed for each in rows.read(path)] == [0]
    rows.append(path, row(seed=2))
    assert [each.seed for each in rows.read(path)] == [0, 2]


def search(good_at, larger=True, seeds=3):
    """The jobs of two recipes and the baselines, when validation peaks at the rate `good_at`."""
    asked = {n: m for n, m in methods.methods_of("reviews", 300).items()
             if n in ("full", "lora", "gps", "shira")}  # fmt: skip
    done = []
    while True:
        job = work.jobs(asked, work.Rows(done, larger), seeds)
        if job is None:
            return asked, done
        distance = abs(math.log(job.lr / good_at))
        done.append(row(job.method, job.lr, job.seed, job.kind, -distance if larger else distance))


def test_every_method_searches_alike_and_beyond_an_edge_that_is_the_best():
    asked, done = search(good_at=3e-3)
    tried = {name: work.Rows(done, True).tried(name) for name in asked}
    assert sorted(tried["gps"]) == pytest.approx([1e-3, 3e-3, 9e-3])
    assert len(tried["full"]) == methods.MOST  # from 4.5e-4 on, towards 3e-3
    assert max(tried["full"]) == pytest.approx(1.35e-3)
    asked, done = search(good_at=3e-3, larger=False)
    assert work.Rows(done, False).best_rate("shira") == pytest.approx(3e-3)


def test_seeds_are_run_at_the_chosen_rate_of_the_best_and_the_baselines():
    asked, done = search(good_at=3e-3, seeds=3)
    later = {(r.method, r.seed) for r in done if r.kind == RUN and r.seed}
    assert later == {(name, seed) for name in asked for seed in (1, 2)}
    assert all(r.lr == pytest.approx(3e-3) for r in done if r.seed and r.method == "gps")
    assert sum(r.kind == BYTES for r in done) == len(asked)


def test_a_failed_run_is_not_tried_again_and_is_never_the_best():
    method = methods.methods_of("reviews", 300)["gps"]
    failed = [row(lr=rate, validation=math.nan, failed="memory") for rate in method.rates]
    known = work.Rows(failed, True)
    assert work.next_rate(method, known) is None
    known = work.Rows([*failed[1:], row(lr=method.rates[0], validation=0.1)], True)
    assert known.best_rate("gps") == method.rates[0]


def test_the_paired_test_is_students():
    assert table.student_t(2.776445, 4) == pytest.approx(0.05, abs=1e-5)
    assert table.student_t(12.7062, 1) == pytest.approx(0.05, abs=1e-5)
    assert table.student_t(0.0, 4) == pytest.approx(1.0)
    mean, p = table.paired([0.84, 0.85, 0.83, 0.86, 0.85], [0.82, 0.84, 0.82, 0.83, 0.84])
    assert mean == pytest.approx(0.016)
    assert p == pytest.approx(0.01613009, abs=1e-8)  # scipy.stats.ttest_rel
    assert math.isnan(table.paired([1.0], [0.5])[1])


def test_at_least_24_recipes_are_compared_and_8_on_text():
    for task, least in (("reviews", 24), ("text", 8)):
        found = methods.methods_of(task, 300)
        assert {"full", "lora", "dora"} <= set(found)
        assert sum(each.kind == "recipe" for each in found.values()) >= least


def test_the_pages_tell_how_many_recipes_there_are():
    root = Path(__file__).resolve().parents[2]
    every = methods.methods_of("reviews", 300).values()
    number = len({each.recipe for each in every if each.kind == "recipe"})
    for page in ("README.md", "Makefile", "bench/README.md"):
        lines = (root / page).read_text().splitlines()
        told = [line for line in lines if "bench OP=methods" in line]
        assert any(f" {number} recipes" in line for line in told), page


def command(tmp_path, monkeypatch, *arguments, runs=None):
    """The command in small, in this process. runs: a list that gets the jobs."""

    def apart(function, task, setting, *job):
        if runs is not None:
            runs.append(job)
        if job[0] == "shira":
            raise RunFailed("a line\nout of memory")
        if function is main.memory:
            return Row(task, str(setting), BYTES, *job[:3], peak_bytes=3 << 20)
        return function(task, setting, *job)

    monkeypatch.setattr(main, "run_apart", apart)
    asked = ["--task", "tiny", "--untested", "--threads", "1", "--out", str(tmp_path)]
    return main.main([*asked, *arguments])


def test_the_whole_command_in_small_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(work, "MOST", 3)
    monkeypatch.setattr(work, "WITH_SEEDS", ("full",))
    first, second, third = [], [], []
    only = "--only", "full,gps,spiel,shira", "--seeds", "2"
    assert command(tmp_path, monkeypatch, *only, "--seconds", "0", runs=first) == 0
    assert not first and "no row yet" in capsys.readouterr().out
    assert command(tmp_path, monkeypatch, *only, runs=first) == 0
    text = capsys.readouterr().out
    assert len(first) == 4 * 3 + 4 + 3  # rates, bytes, and one more seed where none failed
    assert "| gps |" in text and "out of memory" in text and "accuracy" in text
    lines = (tmp_path / "methods.csv").read_text().splitlines()
    (tmp_path / "methods.csv").write_text("\n".join(lines[:-2]) + "\n")
    assert command(tmp_path, monkeypatch, *only, runs=second) == 0
    assert second == first[-2:]
    assert command(tmp_path, monkeypatch, "--table", runs=third) == 0 and not third
    assert "| spiel |" in (tmp_path / "methods.md").read_text()
    found = {r.method: r for r in rows.read(tmp_path / "methods.csv") if r.kind == RUN}
    assert found["full"].trainable > found["gps"].trainable > found["spiel"].trainable > 0
    assert 0 <= found["gps"].test <= 1 and found["gps"].kept > 0


def test_a_run_is_the_same_each_time_and_warms_a_head_alone():
    from bench.methods.run import run, warm_head

    setting = tasks.SETTINGS["tiny"]
    one, two = (run("tiny", setting, "gradient_columns", 3e-3, 1, 1) for _ in range(2))
    assert (one.validation, one.test, one.kept) == (two.validation, two.test, two.kept)
    task = tasks.tiny(setting)
    model, fresh = task.model(0), task.model(0)
    warm_head(task, model, 0)
    changed = [n for (n, a), b in zip(model.named_parameters(), fresh.parameters())
               if not a.equal(b)]  # fmt: skip
    assert changed == ["classifier.weight", "classifier.bias"]
    assert all(p.requires_grad for p in model.parameters())


def test_unknown_methods_and_tasks_are_named(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="--task: unknown 'rewiews'"):
        main.main(["--task", "rewiews"])
    with pytest.raises(SystemExit, match="--only: unknown 'gsp'"):
        command(tmp_path, monkeypatch, "--only", "gsp")
