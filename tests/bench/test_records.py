"""Rows through csv and into Markdown; what passes and what falls short."""

import pytest

from bench import table
from bench.records import Must, Record, read, stamps, tally, write

ROWS = [
    Record(
        "adamw",
        "entries 1 %",
        "ours",
        1,
        "entries",
        0.01,
        "bfloat16",
        "ms",
        1.0,
        1.25,
        1.5,
        12,
        None,
        0.5,
    ),
    Record(
        "adamw",
        "entries 1 %",
        "theirs, with comma",
        1,
        "entries",
        0.01,
        "bfloat16",
        "ms",
        2.0,
        2.5,
        3.0,
        12,
        2.0,
        disturbed=3,
    ),
    Record("adamw", "entries 1 %", "absent", 1, note="it does not build here"),
    Record("adamw", "ceilings", "copy", 1, unit="GB/s", p50=20.0),
]


def test_csv_round_trip(tmp_path):
    path = tmp_path / "deep" / "machine.csv"
    write(path, ROWS, Record, {"machine": "a, b"})
    assert read(path, Record) == ROWS
    assert stamps(path, Record) == {"adamw": {"machine": "a, b"}}


def test_a_new_run_of_an_op_replaces_its_rows_only(tmp_path):
    path = tmp_path / "machine.csv"
    other = Record("wgrad", "rows", "ours", 2, p50=3.0)
    write(path, [*ROWS, other], Record, {"machine": "old"})
    new = Record("adamw", "entries 5 %", "ours", 1, p50=9.0)
    write(path, [new], Record, {"machine": "new"})
    assert read(path, Record) == [other, new]
    assert stamps(path, Record) == {"wgrad": {"machine": "old"}, "adamw": {"machine": "new"}}


def test_promises_round_trip(tmp_path):
    least = Must("adamw", "key", "at least", 1, 2.0, 1.5)
    rows = [least, Must("adamw", "key", "at most", 2, None, 1.05, False, "a note")]
    write(tmp_path / "m.csv", rows, Must, {"machine": "x"})
    assert read(tmp_path / "m.csv", Must) == rows


@pytest.mark.parametrize(
    ("measured", "target", "at_least", "met"),
    [(2.0, 1.5, True, True), (1.5, 1.5, True, True), (1.4, 1.5, True, False)]
    + [
        (1.0, 1.05, False, True),
        (1.1, 1.05, False, False),
        (None, 1.0, True, False),
        (None, 1.0, False, False),
    ],
)
def test_pass_or_fall_short(measured, target, at_least, met):
    must = Must("op", "key", "a line", 2, measured, target, at_least, "why")
    assert must.met is met
    text = str(must)
    assert (
        text.startswith("pass " if met else "FALLS SHORT ")
        and "2 threads: a line" in text
        and "[why]" in text
    )


def test_what_a_machine_cannot_judge_neither_passes_nor_falls_short():
    must = Must("op", "key", "a line", 2, None, 1.0, unmeasured="no such instructions")
    assert (
        str(must).startswith("not measured ")
        and "[no such instructions]" in str(must)
        and not must.met
    )
    rows = [Must("op", "key", "x", 1, 2.0, 1.0), Must("op", "key", "y", 1, None, 1.0), must]
    assert tally(rows) == "1 of 2 pass, 1 not measured here" and tally(rows[:2]) == "1 of 2 pass"
    assert [line.split("|")[5].strip() for line in table.musts(rows).splitlines()[2:]] == [
        "pass",
        "FALLS SHORT",
        "not measured",
    ]


@pytest.mark.parametrize("has", [True, False])
def test_bf16_products_are_judged_where_the_machine_makes_them(monkeypatch, has):
    from bench import bench_layer, bench_selected_wgrad, suite
    from bench.ceilings import Ceilings

    monkeypatch.setattr(suite.machine, "has_bf16", lambda flags=None: has)
    for module in (bench_layer, bench_selected_wgrad):
        found = suite.Found(1, Ceilings(1e9, 1e9, {}))
        for case in module.cases("quick"):
            found.cases[case.name] = case
            names = {"ours", "dense", *bench_layer.training.METHODS, bench_layer.PRODUCTS}
            found.samples[case.name] = {name: {0: 1.0} for name in names}
        lines = [m for m in module.musts(found) if "bf16" in m.line]
        assert lines and all((m.verdict == "not measured") is not has for m in lines)
        assert all((m.measured is None) is not has for m in lines)


def test_the_table_of_an_op():
    musts = [Must("adamw", "key", "a line", 1, 2.0, 1.5)]
    text = table.document("adamw", ROWS, musts, {"machine": "the machine"})
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    assert lines[2] == ["entries 1 %", "ours", "1", "1.25", "1.5", "", "40 %", "12", ""]
    assert lines[3] == [
        "entries 1 %",
        "theirs, with comma",
        "2",
        "2.5",
        "3",
        "2",
        "",
        "12, 3 disturbed",
        "",
    ]
    assert lines[4] == ["entries 1 %", "absent", "", "", "", "", "", "", "it does not build here"]
    assert (
        "copy 20 GB/s" in text
        and "the machine" in text
        and lines[-1] == ["a line", "1", "2", "≥ 1.5", "pass", ""]
    )


def test_cases_of_one_thing_stand_side_by_side():
    rows = [
        Record("b", f"layer: {phase}", way, 2, p50=p)
        for way, p in (("x", 1.0), ("y", 2.0))
        for phase in ("forward", "wgrad")
    ]
    lines = [line.replace(" ", "") for line in table.of_op(rows, 2).splitlines()]
    assert lines[0] == "|layer,ms|forward|wgrad|" and lines[2:] == ["|x|1|1|", "|y|2|2|"]


def test_plot_of_a_sweep(tmp_path):
    pytest.importorskip("matplotlib")
    from bench import plot

    sweep = [
        Record("op", f"rows {d}", who, 1, "rows", d, "float32", p50=p, ratio=r, bound=0.01)
        for d, p, r in ((0.01, 1.0, 3.0), (0.1, 2.0, 0.5))
        for who in ("ours", "dense")
    ]
    assert plot.draw(tmp_path / "p.png", "op", sweep, 1).stat().st_size > 10_000
    assert plot.draw(tmp_path / "q.png", "op", sweep[:2], 1) is None


def test_pictures_are_drawn_from_the_csv_file(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from bench import main, plot

    tables = sorted(main.RESULTS.glob("*.promises.csv"))
    table = next(table for table in tables if "gather_selected" in table.read_text())
    results = str(table).replace(".promises", "")
    assert plot.main([results, "--op", "gather_selected", "--out", str(tmp_path)]) == 0
    names = [path.name for path in sorted(tmp_path.glob("*.png"))]
    stem = table.name.removesuffix(".promises.csv")
    assert names == [f"{stem}-gather_selected-{threads}.png" for threads in (1, 2)]
    assert capsys.readouterr().out.count("wrote ") == 2
    assert plot.main([results, "--op", "breakdown", "--out", str(tmp_path)]) == 1
    assert "nothing to draw" in capsys.readouterr().out


def test_the_readme_has_the_marks_that_are_filled():
    from bench import main, readme

    rows = [
        Record("breakdown", "layer: forward", "ours", 2, p50=3.0),
        Record("linear", "a call", "ours", 1, p50=1.0),
    ]
    stamp = dict.fromkeys(("breakdown", "linear"), {"machine": "the machine"})
    musts = [
        Must("adamw", "key", "a line", 1, 2.0, 1.5),
        Must("adamw", "key", "a line", 2, None, 1.5),
    ]
    text = readme.fill(main.README.read_text(), readme.sections(rows, musts, stamp))
    assert "not measured yet" not in text and text.count("the machine") >= 2
    assert "| adamw: a line |  ≥ 1.5 |          |        2 | not measured |" in text
    renamed = [musts[0], Must("adamw", "key", "another line", 2, 3.0, 1.5)]  # matched by the key
    assert "| adamw: a line |  ≥ 1.5 |          |        2 |         3 |" in readme.expected(
        renamed
    )
    assert readme.fill(text, readme.sections(rows, musts, stamp)) == text
    with pytest.raises(ValueError, match="marks"):
        readme.fill("", {"host": "x"})


def promises_of_the_quick_set():
    """[(op, key, line)], without those of `extra` and `apart`, which measure first."""
    from bench import main, suite
    from bench.ceilings import Ceilings

    found = []
    for op in main.OPS:
        module = main.module_of(op)
        cases = {case.name: case for case in module.cases("quick")}
        musts = suite.musts_of(module, suite.Found(1, Ceilings(1e9, 1e9, {}), cases=cases))
        found += [(op, must.key, must.line) for must in musts]
    return found


def test_every_promise_of_the_quick_set_was_predicted():
    from bench import bench_lean
    from bench.predictions import EXPECTED

    keys = {(op, key) for op, key, _ in promises_of_the_quick_set()}
    keys |= {("masked_adamw", "same_bits"), ("layer", "peak.resident"), ("layer", "peak.allocator")}
    keys |= {("lean", f"{bench_lean.key_of(case)}.bytes") for case in bench_lean.cases("quick")}
    assert keys == {(op, key) for op, expected in EXPECTED.items() for key in expected}


def test_a_promise_is_known_by_a_key_of_its_own():
    promises = promises_of_the_quick_set()
    assert len({(op, key) for op, key, _ in promises}) == len(promises)
    assert all(" " not in key and key.isascii() for _, key, _ in promises)


# Promised after the last run on a machine that is no longer at hand.
VARIED = {("masked_adamw", f"varied.{what}") for what in ("aged", "by_row", "scaled")}
UNMEASURED = {"amd-epyc-2-cores-avx2": VARIED}


def test_the_committed_promises_have_the_keys_of_today():
    from bench import main

    now = {(op, key): line for op, key, line in promises_of_the_quick_set()}
    for path in main.RESULTS.glob("*.promises.csv"):
        unmeasured = UNMEASURED.get(path.name.removesuffix(".promises.csv"), set())
        assert now.keys() >= unmeasured
        rows = read(path, Must)
        assert rows and all(now.get((m.op, m.key), m.line) == m.line for m in rows)
        keys = {(m.op, m.key) for m in rows}
        assert not keys & unmeasured, "measured now: off the list"
        measured = {op for op, _ in keys}
        assert {pair for pair in now if pair[0] in measured} <= keys | unmeasured


def test_a_machine_whose_gemm_rate_changes_between_ops_is_reported():
    def rates(*pairs):
        return [
            Record(f"op {i}", "ceilings", "GEMM float32", n, unit="GFLOP/s", p50=rate)
            for i, (n, rate) in enumerate(pairs)
        ]

    assert table.unsteadiness(rates((1, 90.0), (1, 85.0), (2, 180.0), (2, 170.0))) == []
    (line,) = table.unsteadiness(rates((1, 90.0), (1, 85.0), (2, 180.0), (2, 120.0)))
    assert "2 threads" in line and "120 to 180 GFLOP/s" in line
    assert table.unsteadiness(ROWS) == []
