"""Candidates for the tiles of selected_wgrad's blocks.

What the table TILES in kernels/selected_wgrad_blocks.py is chosen from.

For each tile that blocks of some size get, the pipelines that may serve it, and programs that stay
for several tiles or do not. The fastest is marked; where it is not the default, it belongs into
TILES (or PERSISTENT_FROM).
"""

import contextlib
import functools
from unittest import mock

import torch

from bench.cases import GPU_TOKENS, SQUARE, selection
from bench.device import compare, replays
from bench.gpu_results import OK, RED, SHORT
from sparse_ft import ops

# Blocks of so many entries a side and the share of them that gives a panel's mean of gathered
# features: the tile's width.
BLOCKS = {
    (64, 256): (64, 0.1),
    (64, 128): (64, 0.015),
    (64, 64): (64, 0.0005),
    (128, 128): (128, 0.1),
    (32, 256): (32, 0.1),
}
BLOCKS |= {(16, 256): (16, 0.08)}
# Tokens at a time, warps, stages.
PIPELINES = [(64, 8, 3), (64, 8, 4), (64, 4, 3), (32, 8, 4), (128, 8, 2)]
MICRO = 1e6


def name(pipeline):
    return "{} tokens, {} warps, {} stages".format(*pipeline)


def sweep(device, size, seconds, results):
    """A row for each candidate; those that do not compile or launch are rows that say so."""
    try:
        from sparse_ft.kernels import selected_wgrad_blocks as kernels
        from sparse_ft.kernels import selected_wgrad_gemm as gemm
    except ImportError as why:
        return results.add("ops", "tiles", status="skipped", note=str(why))
    if device.type != "cuda":
        return results.add("ops", "tiles", status="skipped", note="Triton kernels run on a GPU")
    for tile, (block, density) in BLOCKS.items() if size == "full" else ():
        shape = SQUARE
        grad_output, input = (torch.randn(GPU_TOKENS, n, device=device).bfloat16() for n in shape)
        layout = selection("blocks", shape, density, block, device=device).layout
        candidates = {name(pipeline): (pipeline, False) for pipeline in PIPELINES}
        candidates["persistent"] = (kernels._tile_of(*tile), True)
        call = functools.partial(ops.selected_wgrad, grad_output, input, *layout)
        with mock.patch.object(gemm, "DENSE_LOADS", float("inf")):  # panels, however many
            measure(kernels, tile, candidates, call, device, seconds, results)


@contextlib.contextmanager
def _with(kernels, tile, pipeline, persistent):
    with (
        mock.patch.dict(kernels.TILES, {tile: pipeline}),
        mock.patch.object(kernels, "PERSISTENT_FROM", 0 if persistent else 1e9),
    ):
        yield


def measure(kernels, tile, candidates, call, device, seconds, results):
    """Rows of the candidates {name: (pipeline, persistent)} for one tile, on a `call`
    that uses it.
    """
    want, runnable = call(), {}
    for what, (pipeline, persistent) in candidates.items():
        try:
            with _with(kernels, tile, pipeline, persistent):
                got = call()
            if (got - want).norm() > 1e-3 * want.norm():
                raise ArithmeticError("other values than the default's")
        except Exception as problem:  # noqa: BLE001 - a pipeline too large for the device is a row, not a stop
            status = RED if isinstance(problem, ArithmeticError) else SHORT
            results.add(
                "ops",
                _case(tile),
                what,
                status,
                note=f"{type(problem).__name__}: {problem}".splitlines()[0][:120],
            )
            continue

        def run(pipeline=pipeline, persistent=persistent):
            with _with(kernels, tile, pipeline, persistent):
                call()

        runnable[what] = run
    if not runnable:
        return  # each has a row that says why
    variants, eager = replays(runnable, device)
    times = compare(variants, device, seconds)
    best = min(times, key=lambda what: times[what].p50)
    default = name(kernels._tile_of(*tile))
    for what, t in times.items():
        words = [
            word
            for word, holds in (
                ("fastest", what == best),
                ("default", what == default),
                ("eager", what in eager),
            )
            if holds
        ]
        spread = t.fields(MICRO, "value")
        results.add("ops", _case(tile), what, OK, note=", ".join(words), **spread)


def _case(tile):
    return "tiles {} x {}".format(*tile)
