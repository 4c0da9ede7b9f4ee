"""python -m bench.gpu_roofline: writes bench/ROOFLINE.md from the floors, with what was measured
where there is a file of it.

Measured: results/gpu_ops.csv, the results.csv of a run of `bench/gpu.sh ops`.
"""

import csv
import sys
from pathlib import Path

from sparse_ft.kernels.selected_wgrad_splits import Tiles, seconds, splits_of
from sparse_ft.kernels.selected_wgrad_tables import panels

from bench import cases
from bench import gpu_floors as floors
from bench.gpu_floors import A100, H200
from bench.table import markdown, number

HERE = Path(__file__).resolve().parent
PAGE, MEASURED = HERE / "ROOFLINE.md", HERE / "results" / "gpu_ops.csv"
TOKENS, SHAPE, DENSITIES = cases.GPU_TOKENS, cases.SQUARE, floors.DENSITIES
LAYER, LARGE = cases.LAYER_1B, cases.GPU_LARGE
NNZ = LARGE[0] * LARGE[1]
# Share of the floor's speed that is expected, with the reason where it is far from the usual 85 to
# 90 %.
EXPECTED = {
    "rows": (
        "80 %",
        "two launches; below 184 rows the product is bound by reading the other operand",
    ),
    "columns": ("85 %", "the library's product, thin in one dimension"),
    "blocks": (
        "80 %",
        (
            "of the larger of three terms, less where few blocks are split over tokens"
            " (`kernels/selected_wgrad_splits.py`): their sums are a launch, and programs of few"
            " tokens wait for their first copies"
        ),
    ),
    "grouped": (
        "60 %",
        (
            "few tiles a layer: the last round of programs is half empty; sums over splits are a"
            " launch"
        ),
    ),
    "entries": (
        "85 %",
        "dots read the cache as fast as it goes; strips are the library's product plus 7 %",
    ),
    "masked_adamw_": (
        "80 %",
        (
            "sectors of lone entries are read before they are written: at 1 % another 30 bytes an"
            " entry"
        ),
    ),
    "gather_selected": ("85 %", "whole sectors count"),
    "scatter_selected": ("70 %", "partial sectors as in masked_adamw_"),
    "streams": ("90 %", "a copy that computes"),
}
HEAD = [
    "case",
    "GFLOP",
    "MB",
    "MB of cache",
    "launches",
    "H200 µs",
    "A100 µs",
    "expected",
    "measured",
]


def measured():
    """{case: share of the floor's speed} of a run, if there was one."""
    if not MEASURED.exists():
        return {}
    with MEASURED.open(newline="", encoding="utf-8") as file:
        return {
            row["case"]: float(row["fraction"])
            for row in csv.DictReader(file)
            if row["variant"] == "ours" and row["fraction"]
        }


def row(name, phases, expected, found, method=""):
    totals = [sum(getattr(phase, term) for phase in phases) for term in ("flop", "dram", "l2")]
    work = [number(total / 10**power) if total else "" for total, power in zip(totals, (9, 6, 6))]
    times = [number(1e6 * floors.floor(phases, ceilings)) for ceilings in (H200, A100)]
    got = f"{100 * found[name]:.0f} %" if name in found else "not measured yet"
    return [
        f"{name}{f': {method}' if method else ''}",
        *work,
        floors.launches(phases),
        *times,
        expected,
        got,
    ]


def expected_of_blocks(density: float, phases: list[floors.Phase]) -> str:
    """Four fifths of what the kernel's own splits leave of a floor, to the next 5 %.

    A processor waits for its copies, parts of the tokens are added up, rounds are not full.
    """
    index = cases.selection("blocks", SHAPE, density).index
    block = cases.BLOCK
    table = panels(index, block, block)
    tiles = Tiles(table.tiles.size(0), block, table.width, table.loads, index.size(0) * block**2)
    time = seconds(TOKENS, tiles, splits_of(TOKENS, tiles))
    share = 0.8 * min(1, floors.floor(phases, H200) / time)
    return f"{5 * round(20 * share)} %"


def wgrad_rows(found):
    lines = []
    for kind in floors.METHODS:
        for density in DENSITIES + (floors.MANY if kind == "blocks" else ()):
            phases, method = floors.selected_wgrad(kind, TOKENS, SHAPE, density, H200)
            expected = EXPECTED[kind][0]
            if kind == "blocks" and method != "strips":
                expected = expected_of_blocks(density, phases)
            lines.append(
                row(floors.name("selected_wgrad", kind, density), phases, expected, found, method)
            )
    name = floors.name("selected_wgrad_grouped", "blocks", 0.01) + f", {len(LAYER)} layers"
    phases = floors.grouped_wgrad([(cases.GPU_LAYER_TOKENS, shape) for shape in LAYER], 0.01)
    return [*lines, row(name, phases, EXPECTED["grouped"][0], found)]


def memory_rows(found):
    lines = []
    for kind in floors.METHODS:
        for density in DENSITIES if kind == "entries" else DENSITIES[-1:]:
            name = floors.name("masked_adamw_", kind, density)
            lines.append(
                row(
                    name,
                    floors.adamw(kind, density * NNZ, density),
                    EXPECTED["masked_adamw_"][0],
                    found,
                )
            )
    for op in ("gather_selected", "scatter_selected"):
        for kind in floors.METHODS:
            lines.append(
                row(
                    floors.name(op, kind, 0.05),
                    floors.copied(kind, 0.05 * NNZ, 0.05),
                    EXPECTED[op][0],
                    found,
                )
            )
    for op, bytes_each in floors.STREAMS.items():
        lines.append(
            row(op, floors.streamed(floors.STREAM, bytes_each), EXPECTED["streams"][0], found)
        )
    return lines


def takeovers():
    """Where one method of selected_wgrad overtakes another, by their floors."""

    def at(ceilings, kind, one, other, shape):
        methods = {
            **floors.METHODS[kind],
            "dense + gather": lambda *a: floors.dense_and_gather(kind, *a),
        }
        calls = [lambda d, m=methods[name]: m(TOKENS, shape, d) for name in (one, other)]
        found = floors.crossover(*calls, ceilings)
        return "nowhere" if found is None else f"{100 * found:.2g} %"

    pairs = [
        ("entries", "dots", "strips"),
        ("blocks", "grouped panels", "strips"),
        ("blocks", "grouped panels", "dense + gather"),
        ("blocks", "one program a block", "dense + gather"),
    ]
    sizes = (SHAPE, cases.SHAPES["Llama-8B"]["gate, up"])
    head = [
        "up to which density",
        *(f"{name}, {a} × {b}" for name in ("H200", "A100") for a, b in sizes),
    ]
    lines = [
        [
            f"{kind}: {one} before {other}",
            *(at(c, kind, one, other, shape) for c in (H200, A100) for shape in sizes),
        ]
        for kind, one, other in pairs
    ]
    return markdown(head, lines)


def chips():
    lines = [
        ["copy, TB/s (reads and writes)", *(f"{c.copy / 1e12:.3g}" for c in (H200, A100))],
        ["second-level cache, TB/s (assumed)", *(f"{c.l2 / 1e12:.3g}" for c in (H200, A100))],
        ["bf16 product, TFLOP/s", *(f"{c.gemm['bfloat16'] / 1e12:.3g}" for c in (H200, A100))],
        ["FLOP for each byte of memory, of cache", *map(intensity, (H200, A100))],
    ]
    return markdown(["", "H200", "A100"], lines)


def intensity(ceilings):
    rate = ceilings.gemm["bfloat16"]
    return f"{rate / ceilings.copy:.0f}, {rate / ceilings.l2:.0f}"


def document():
    found, (rows, columns), (more, across) = measured(), SHAPE, LARGE
    dense = [
        number(1e6 * floors.floor(floors.dense_wgrad(TOKENS, SHAPE), ceilings))
        for ceilings in (H200, A100)
    ]
    reasons = "\n".join(f"- {name}: {share}; {why}." for name, (share, why) in EXPECTED.items())
    return f"""# Roofline of the ops on a GPU

Written by `python -m bench.gpu_roofline` from `gpu_floors.py`. `bench/gpu.sh ops` measures the
ceilings of the machine first and compares each op with its floor at those.

A floor is the largest of operations over the product's rate, bytes over the copy rate and bytes of
cache over its rate; phases that wait for each other add up. "Expected" is the share of the floor's
speed predicted before any measurement. Operands and weights are bf16, values and state fp32, blocks
64 × 64.

{chips()}

The H200's copy and product were measured, on random data. The A100 (80 GB, SXM) has its
datasheet's, times the share of its own that the H200 reached.

## selected_wgrad: weight {rows} × {columns}, {TOKENS} tokens

{markdown(HEAD, wgrad_rows(found))}

The dense bf16 gradient: {dense[0]} µs on the H200, {dense[1]} µs on the A100. One 64 × 64 block
alone does 32 FLOP a byte of cache, a panel of 64 against four gathered ones 51, two panels against
four 85.

{takeovers()}

From there on strips of the dense product, gathered while in the cache, serve blocks as well as
entries: `selected_wgrad` goes over at 33 % of 64 × 64 blocks (where its programs load 1/156 of
rows × columns features a token) and at 0.5 % of entries. Rows and columns stay below the dense
product at any density. These are the crossings of floors: a method that misses its floor moves
them, and measurements decide. `selected_wgrad_grouped`: the {len(LAYER)} weights of a Llama-1B
layer, {cases.GPU_LAYER_TOKENS} tokens.

The tiles of blocks (a panel of up to 128 features, up to 256 gathered ones) are chosen by
arithmetic. `bench/gpu.sh ops` times the candidates as "tiles"; what wins there goes into `TILES`
and `PERSISTENT_FROM` of `kernels/selected_wgrad_blocks.py`.

## The optimiser, moves (weight {more} × {across}), streams ({floors.STREAM >> 20} M elements)

{markdown(HEAD, memory_rows(found))}

`masked_adamw_` takes three launches for up to 576 tensors, one of them the look for inf and NaN,
and with `in_backward=True` as many for each tensor.

## Why these expectations

{reasons}
"""


if __name__ == "__main__":
    PAGE.write_text(document(), encoding="utf-8")
    sys.exit(0)
