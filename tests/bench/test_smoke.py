"""Every benchmark file runs at tiny shapes, so that nothing rots; no time is looked at."""

import gc

import pytest
import torch

for package in ("tqdm", "peft", "transformers"):
    pytest.importorskip(package)

from bench import bench_layer, cases, main, memory, suite, table  # noqa: E402
from bench.bench_gather_selected import indexed  # noqa: E402

THREADS = [1]  # one: the workers of `make test` share the cores


@pytest.fixture
def quickly(monkeypatch):
    """Without competitors that compile for seconds, or that take seconds to import."""
    from bench import optimizers

    def absent(parameters):
        raise suite.Unavailable("left out of the tests")

    for name in set(optimizers.DENSE) - {"torch fused", "torch foreach"}:
        monkeypatch.setitem(optimizers.DENSE, name, absent)
    monkeypatch.setattr(bench_layer, "run_apart", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(bench_layer.memory, "return_freed_blocks", lambda: None)


@pytest.mark.parametrize("op", main.OPS)
def test_every_benchmark_runs(op, quickly):
    module = main.module_of(op)
    ticks = []
    records, musts = suite.run(module, "tiny", THREADS, lambda seconds, what: ticks.append(what))
    if hasattr(module, "apart"):
        more_records, more_musts = module.apart("tiny", THREADS[-1])
        assert more_records and more_musts
        records, musts = records + more_records, musts + more_musts
    assert (
        {r.case.partition(": ")[0] for r in records}
        >= {case.name for case in module.cases("tiny")}
        <= set(ticks)
    )
    timed = [r for r in records if r.p50 is not None]
    assert all(r.p20 is None or r.p20 <= r.p50 <= r.p80 for r in timed) and timed
    # A difference: noise may make it negative.
    assert all(r.p50 >= 0 for r in timed if not r.case.endswith(": wgrad"))
    assert all(r.note for r in records if r.p50 is None)
    assert all(m.measured is None or m.measured > 0 for m in musts) and (
        musts or op in ("breakdown", "gather_selected", "scatter_selected")
    )
    assert table.document(op, records, musts, {"machine": "here"})


def test_the_quick_set_keeps_its_time(monkeypatch):
    """What the bar counts, all ops at two thread counts.

    A third of 15 minutes, for tests, models, warm-up and calls that outlast their budget take the
    rest. With bf16 instructions: that is where the quick set is the longest.
    """
    monkeypatch.setattr(suite.machine, "has_bf16", lambda flags=None: True)
    total = sum(main.budget(main.module_of(op), "quick", [1, 2]) for op in main.OPS)
    assert 200 < total <= 300


@pytest.mark.parametrize("op", main.OPS)
def test_every_case_has_a_name_of_its_own_and_seconds(op):
    module = main.module_of(op)
    assert (
        len({case.name for case in module.cases("full")})
        == len(module.cases("full"))
        >= len(module.cases("quick"))
    )
    assert all(case.seconds > 0 for size in suite.SIZES for case in module.cases(size))


@pytest.mark.parametrize("kind", ["rows", "columns", "blocks", "entries"])
def test_the_competitors_of_a_gather_get_the_same_values(kind):
    chosen = cases.selection(kind, (128, 192), 0.3)
    matrix = torch.randn(128, 192)
    view, subscripts = indexed(matrix, kind, chosen.index.long())
    assert torch.equal(view[subscripts], chosen.gather(matrix))


@pytest.mark.parametrize("kind", ["rows", "columns", "blocks", "entries"])
def test_selections_have_the_density_asked_for(kind):
    assert cases.selection(kind, (1024, 2048), 0.1).density((1024, 2048)) == pytest.approx(
        0.1, rel=0.05
    )
    assert cases.selection(kind, (128, 128), 1.0).density((128, 128)) == 1


@pytest.mark.parametrize("kind", ["rows", "columns", "blocks", "entries"])
def test_the_competitors_of_a_step_leave_the_same_weight(kind):
    from bench.bench_masked_adamw import Setting

    weights = []
    for way in ("ours", "prepared", "index_copy"):
        torch.manual_seed(0)
        setting = Setting(cases.Case("", kind, 0.2, "float32", (128, 192)))
        step = getattr(setting, way)()
        step()
        step()
        weights.append(setting.stepped[0])
        assert not torch.equal(weights[-1], setting.weight)
    assert torch.equal(weights[0], weights[1])
    torch.testing.assert_close(weights[0], weights[2])


@pytest.mark.parametrize("notes", [True, False])
def test_a_ratio_over_a_compact_step_says_what_bounds_it(notes):
    """Where the parts of a step were timed, what is left when it takes as long as they do."""
    from bench.bench_masked_adamw import COMPACT, PARTS, PREPARED, musts
    from bench.ceilings import Ceilings

    case = cases.Case("entries 5 %", "entries", 0.05, "bfloat16", (128, 192))
    found = suite.Found(1, Ceilings(1.0, 1.0, {}), cases={case.name: case})
    seconds = {suite.OURS: 4.0, COMPACT: 6.0} | (
        {PARTS[0]: 2.0, PARTS[1]: 1.0, PREPARED: 3.0} if notes else {}
    )
    found.samples[case.name] = {name: {0: taken} for name, taken in seconds.items()}
    (line,) = [must for must in musts(found) if COMPACT in must.line]
    want = (
        "prepared, as SelectiveAdamW steps: 2.00; its parts alone: 2.00, step at 0.75 of them"
        if notes
        else ""
    )
    assert line.measured == 1.5 and line.note == want


@pytest.mark.parametrize("kind", ["rows", "columns", "blocks", "entries"])
def test_the_competitors_of_a_weight_gradient_agree(kind):
    from bench.bench_selected_wgrad import providers

    case = cases.Case("", kind, 0.2, "float32", (128, 128), 8)
    calls = {name: make() for name, make in providers(case).items()}
    chosen, ours = cases.selection(kind, (128, 128), 0.2), calls["ours"]()
    torch.testing.assert_close(chosen.gather(calls["dense"]()), ours)
    for name in set(calls) - {"ours", "dense"}:
        found = calls[name]()
        torch.testing.assert_close(
            found.values() if found.layout is torch.sparse_csr else found, ours
        )


def test_running_peak():
    assert memory.running_peak([5, 3, -4, 2, -6]) == (8, 0)
    assert memory.running_peak([]) == (0, 0)


def test_the_allocators_peak_sees_what_was_freed_again():
    def call():
        a = torch.ones(1000)
        b = a + 1
        del a
        return b.sum().item()

    peak, left = memory.allocator_peak(call)
    assert 8000 <= peak < 9000 and left == 0


def test_what_was_garbage_before_does_not_count_against_it():
    """As freed within, it would hide as much of what is allocated: torch knows the size of what it
    allocated under another profile.
    """

    def leave_garbage():
        cycle = []
        memory.allocator_peak(lambda: cycle.extend([torch.ones(100_000), cycle]))
        gc.collect()  # it grows old: young garbage would be gone before the call

    def call():
        gc.collect()
        return torch.ones(1000)

    leave_garbage()
    assert 4000 <= memory.allocator_peak(call)[0] < 5000


def test_memory_promises():
    """Peak over saved + values + gradients + state + what passes in an all-frozen step."""
    frozen = dict(resident=150, allocator=140, saved=100, values=0, gradients=0, state=0)
    ours = dict(resident=None, allocator=160, saved=110, values=3, gradients=3, state=6)
    (must,) = bench_layer.memory_musts({"ours": ours, "frozen": frozen}, 2)
    assert must.measured == pytest.approx(160 / (122 + 40)) and must.met
    assert bench_layer.memory_musts({"ours": ours}, 2) == []


@pytest.mark.parametrize("kind", ["entries", "columns"])
def test_whole_lines_of_a_step_are_those_of_the_index(kind):
    from bench.bench_masked_adamw import lines_bound
    from bench.ceilings import Ceilings

    case = cases.Case("", kind, 0.03, "bfloat16", (40, 256))
    chosen = cases.selection(kind, case.shape, case.density)
    rows, columns = chosen.mask(case.shape).nonzero().T.tolist()
    lines = {(row * 256 + column) // 32 for row, column in zip(rows, columns)}  # 32 bf16 a line
    entry = {"entries": 32, "columns": 28}[kind]
    assert 0 < len(lines) < 40 * 8
    assert lines_bound(case, Ceilings(1.0, 1.0, {})) == 2 * 64 * len(lines) + entry * len(rows)
