"""The stages of bench/gpu.sh that check and time ops, at tiny sizes on a CPU."""

import pytest
import torch
from helpers.gpu_rows import CPU, TINY, found

from bench import cases, device, gpu_cases, gpu_checks, gpu_ops, gpu_results, gpu_truth, stats
from bench.gpu_results import OK, RED, SHORT, Results


def test_ops_at_tiny_sizes(folder):
    assert gpu_ops.main(TINY) == 0
    rows = found(folder, "ops")
    assert {row.case for row in rows if row.variant == "ours"} == {
        case.name for case in gpu_cases.cases("tiny")
    }
    assert {row.case for row in rows if not row.variant} == {
        "ceiling copy",
        "ceiling l2",
        "ceiling gemm",
        "ceiling launch",
        "tiles",
    }
    assert all(row.value > 0 for row in rows if row.case != "tiles")


def test_a_wrong_result_is_red_and_has_no_time(folder, monkeypatch):
    real = gpu_cases.ops.selected_wgrad
    monkeypatch.setattr(gpu_cases.ops, "selected_wgrad", lambda *a, **k: real(*a, **k) * 1.1)
    gpu_ops.main([*TINY, "--only", "wgrad rows"])
    (row,) = (row for row in found(folder, "ops") if row.variant)
    assert gpu_results.main(["table"]) == 1
    assert row.status == RED and row.value is None and "relative error 1.0" in row.note


def test_an_error_costs_its_own_case_only(folder, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu_cases.ops, "gather_selected", broken)
    gpu_ops.main([*TINY, "--only", "selected rows"])
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


def test_a_sweep_of_which_nothing_runs_is_rows_and_no_error(folder):
    pytest.importorskip("triton")
    from bench import gpu_tiles
    from sparse_ft.kernels import selected_wgrad_blocks as kernels

    calls = iter([torch.ones(3)])  # of the default alone

    def call():
        return next(calls, None) + 0

    given = {gpu_tiles.name(pipeline): (pipeline, False) for pipeline in gpu_tiles.PIPELINES[:2]}
    gpu_tiles.measure(kernels, (64, 256), given, call, CPU, 0.0, Results())
    assert [row.status for row in found(folder, "ops")] == [SHORT, SHORT]
    assert device.compare({}, CPU, 0.0) == {}


def test_repeats_are_alike(folder):
    assert gpu_checks.main(["--device", "cpu", "--repeats", "2"]) == 0
    rows = found(folder, "repeats")
    assert len(rows) == len(gpu_cases.cases("tiny"))
    assert {row.status for row in rows} == {OK}
    assert all("2 times the same bits" in row.note for row in rows)


def test_every_op_has_calls_that_are_compared_with_its_reference(folder):
    from sparse_ft.ops._registry import OPS

    assert gpu_truth.main(["--device", "cpu"]) == 0
    rows = found(folder, "truth")
    assert {row.status for row in rows} == {OK}
    called = {row.case.split()[0] for row in rows}
    # Others have been made up in these tests.
    ours = {name for name, op in OPS.items() if op.public.__module__.startswith("sparse_ft.")}
    assert ours <= called and len(ours) >= 20


@pytest.mark.parametrize("how", ["tf32", "nan", "a bit"])
def test_an_op_that_is_not_its_reference_is_red(folder, monkeypatch, how):
    real = {name: getattr(gpu_truth.ops, name) for name in ("selected_wgrad", "positive_bits")}

    def wrong(*arguments):
        result = real["selected_wgrad"](*arguments)
        return result * (1 + 3e-4) if how == "tf32" else result / 0.0 * 0.0

    if how == "a bit":
        monkeypatch.setattr(gpu_truth.ops, "positive_bits", lambda x: real["positive_bits"](x) ^ 1)
    else:
        monkeypatch.setattr(gpu_truth.ops, "selected_wgrad", wrong)
    monkeypatch.setattr(gpu_truth, "cases", lambda size: [])
    gpu_truth.main(["--device", "cpu"])
    red = {row.case for row in found(folder, "truth") if row.status == RED}
    kinds = {f"selected_wgrad {kind}" for kind in gpu_truth.KINDS}
    assert red == ({"positive_bits"} if how == "a bit" else kinds)


@pytest.mark.parametrize("how", ["differs", "unwritten", "wrong"])
def test_repeats_that_differ_or_are_wrong_are_red(folder, monkeypatch, how):
    """What a race does, what is left in memory that was not written, NaN, and the same wrong bits
    each time.
    """
    numbers, right = iter(range(100)), torch.ones(4)
    broken = {
        "differs": lambda: [right * (1 + 1e-6 * next(numbers))],
        "unwritten": lambda: [torch.full((4,), float("nan"))],
        "wrong": lambda: [right * 1.1],
    }[how]
    made = gpu_cases.Work({}, broken, lambda: [right])
    monkeypatch.setattr(gpu_checks, "cases", lambda size: [cases.Case("a", make=lambda _: made)])
    gpu_checks.main(["--device", "cpu", "--repeats", "3"])
    (row,) = found(folder, "repeats")
    words = {"differs": "2 of 3 repeats", "unwritten": "error inf", "wrong": "error 1.0"}
    assert row.status == RED and words[how] in row.note


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


def test_a_call_that_cannot_be_captured_is_timed_as_it_is(monkeypatch):
    def captured(call, where):
        if call() == "waits":
            raise RuntimeError("operation not permitted when stream is capturing")
        return lambda: "replayed"

    monkeypatch.setattr(device, "captured", captured)
    monkeypatch.setattr(device, "synchronise", lambda where: None)
    variants = {"ours": lambda: "ours", "other": lambda: "waits"}
    found, eager = device.replays(variants, torch.device("cuda"))
    assert (found["ours"](), found["other"](), eager) == ("replayed", "waits", ["other"])
    assert device.replays(variants, CPU) == (variants, [])


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
