"""masked_adamw_: one AdamW step on the selected entries of a weight, written through, against what
else makes such a step.
"""

import torch

from bench import optimizers
from bench.adamw_setting import AGED, BY_ROW, SCALED, Setting
from bench.cases import LARGE, Case, selection
from bench.records import Must
from bench.stats import median
from bench.suite import OURS, must
from sparse_ft.optim.pages import FAR_APART

OP = "masked_adamw"
TESTS = [
    "tests/ops/test_masked_adamw.py",
    "tests/native/test_masked_adamw.py",
    "tests/native/test_masked_adamw_varied.py",
    "tests/optim/test_pages.py",
]
ENTRIES = {
    "tiny": (0.01,),
    "quick": (0.001, 0.01, 0.05, 0.1),
    "full": (0.0001, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5),
}
STORED = "everything selected, by how values are stored"
DENSE, FULL = "4 M fp32, ours steps 1 % of the entries and the others all", "everything selected"
VARIED = "10 %, entries with ages and factors"
COMPACT = "compact fused + index_copy_"
COMPACT_HUGE = f"{COMPACT}, huge pages"
PREPARED = "ours, prepared"
PARTS = "lines of the weight alone", "update alone"
LINE = 64  # bytes of a cache line
# For optimisers that take seconds on 32 M entries; its fp32 state is over the cache all the same.
MEDIUM = (2048, 2048)


def cases(size):
    shape, medium, seconds = LARGE, MEDIUM, 2.0
    if size == "tiny":
        shape, medium, seconds = (128, 192), (64, 64), 0.02
    found = [
        Case(
            f"entries {100 * d:g} %",
            "entries",
            d,
            "bfloat16",
            shape,
            seconds=3 * seconds if d == 0.01 else seconds,
        )
        for d in ENTRIES[size]
    ]
    found += [
        Case(f"{kind} {100 * d:g} %", kind, d, "bfloat16", shape, seconds=seconds)
        for kind in ("rows", "columns", "blocks")
        for d in ((0.1,) if size == "tiny" else (0.01, 0.1))
    ]
    return found + [
        Case(FULL, "rows", 1.0, "bfloat16", shape, seconds=2 * seconds),
        Case(STORED, "rows", 1.0, "bfloat16", medium, seconds=seconds),
        Case(DENSE, "dense", 0.01, "float32", medium, seconds=2 * seconds),
        Case(VARIED, "rows", 0.1, "float32", medium, seconds=min(seconds, 0.2)),
    ]


def bound(case, ceilings):
    """Seconds to move the useful bytes at triad bandwidth.

    Value and state in and out, gradient and index in, weight out.
    """
    kind = "entries" if case.kind == "dense" else case.kind
    weight = getattr(torch, case.dtype).itemsize
    entry = 3 * 8 + 4 + weight + (4 if kind == "entries" else 0)
    return case.density * case.shape[0] * case.shape[1] * entry / ceilings.triad


def lines_bound(case, ceilings):
    """As `bound`, for entries or columns, where every line of the weight that holds one is read and
    written as a whole.
    """
    chosen = selection(case.kind, case.shape, case.density)
    lines = (
        (chosen.index.long() * getattr(torch, case.dtype).itemsize // LINE)
        .unique_consecutive()
        .numel()
    )
    if case.kind == "columns":
        lines *= case.shape[0]
    entry = 3 * 8 + 4 + (4 if case.kind == "entries" else 0)
    return (2 * LINE * lines + chosen.nnz(case.shape) * entry) / ceilings.triad


def providers(case):
    setting = Setting(case)
    if case.kind == "dense":
        return {OURS: setting.ours} | {
            name: lambda make=make: setting.dense(make, torch.float32)
            for name, make in optimizers.DENSE.items()
        }
    if case.name == STORED:
        bf16, halves = torch.bfloat16, [torch.zeros_like(setting.values, dtype=torch.int16)]
        return {
            OURS: setting.ours,
            "bf16 values": lambda: setting.ours(bf16),
            "bf16 values, rounded by chance": lambda: setting.ours(bf16, seeds=[0]),
            "bf16 values and corrections": lambda: setting.ours(
                bf16, torch.float32, corrections=halves
            ),
        }
    if case.name == VARIED:
        # All step the same tensors: where they lie is 5 to 13 % of a step, and 3 % are looked for.
        tensors = setting.tensors()
        ways = {OURS: None, AGED: AGED, SCALED: SCALED, BY_ROW: BY_ROW}
        return {
            name: lambda what=what: setting.varied(what, tensors) for name, what in ways.items()
        }
    if case.name == FULL:
        return {
            OURS: setting.ours,
            MASTER: lambda: setting.compact_then(setting.weight.copy_, cast=False),
        }
    found = {OURS: setting.ours, COMPACT: setting.index_copy}
    if case.kind in FAR_APART:
        found[COMPACT_HUGE] = lambda: setting.index_copy(huge=True)
    if case.kind == "entries" and case.density < 0.01:
        found[PREPARED] = setting.prepared
    elif case.kind == "entries":
        found |= dict(zip(PARTS, (setting.lines, setting.update)))
    if case.kind == "entries" and case.density == 0.01:
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            found[f"dense fused {name}"] = lambda dtype=dtype: setting.dense(
                optimizers.torch_fused, dtype
            )
            found[f"gradient × mask, dense fused {name}"] = lambda dtype=dtype: setting.dense(
                optimizers.torch_fused, dtype, masked=True
            )
    return found


# (case, key, competitor, at least so many times as fast)
FASTER = [
    ("entries 0.1 %", "entries-0.1.than_compact", COMPACT, 2),
    ("entries 1 %", "entries-1.than_compact", COMPACT, 1.5),
    ("entries 5 %", "entries-5.than_compact", COMPACT, 1.3),
    ("entries 10 %", "entries-10.than_compact", COMPACT, 1.5),
    ("entries 1 %", "entries-1.than_dense_fp32", "dense fused fp32", 15),
    ("entries 1 %", "entries-1.than_dense_bf16", "dense fused bf16", 10),
    ("entries 1 %", "entries-1.than_masked_fp32", "gradient × mask, dense fused fp32", 20),
    ("entries 1 %", "entries-1.than_masked_bf16", "gradient × mask, dense fused bf16", 20),
]
MASTER = "fused fp32 master + bf16 copy"


def musts(found):
    result = []

    def add(name, key, text, measured, target, **keywords):
        result.append(must(found, OP, key, f"{name}: {text}", measured, target, **keywords))

    for name, key, slow, target in FASTER:
        if name in found.cases:
            ratio, note = found.ratio(name, slow), _note(found, name, slow)
            add(name, key, f"times as fast as {slow}", ratio, target, note=note)
    share = "share of same-run triad bandwidth, "
    for kind in ("rows", "columns", "blocks"):
        name = f"{kind} 10 %"
        if name in found.cases:
            note = _note_of_lines(found, name)
            key, reached = f"{kind}-10.of_triad", found.of_bound(name)
            add(name, key, f"{share}useful bytes", reached, 0.75, note=note)
    for name, key in (("entries 1 %", "entries-1"), ("columns 10 %", "columns-10")):
        if name in found.cases:
            reached = _of_lines_bound(found, name)
            add(name, f"{key}.lines_of_triad", f"{share}whole cache lines", reached, 0.75)
    text = "time over torch fused on an fp32 master plus the bf16 copy"
    over = found.ratio(FULL, OURS, MASTER)
    add(f"{FULL} (as rows)", "all.over_master_and_copy", text, over, 1.05, at_least=False)
    # A step on fp32 moves 36 bytes an entry. A generation is one more, a factor four.
    for what, key, most in (
        (AGED, "aged", 1.03),
        (BY_ROW, "by_row", 1.03),
        (SCALED, "scaled", 1.12),
    ):
        over = found.ratio(VARIED, what)
        add(VARIED, f"varied.{key}", f"time with {what} over without", over, most, at_least=False)
    return result


def _of_lines_bound(found, name):
    """Over the rounds that a dense step took part in, where there are any.

    They leave nothing of ours in the cache.
    """
    samples = found.samples.get(name, {})
    rounds = samples.get("dense fused fp32") or samples.get(OURS)
    if not rounds:
        return None
    return lines_bound(found.cases[name], found.ceilings) / median(
        [samples[OURS][r] for r in rounds.keys() & samples[OURS].keys()]
    )


def _note(found, name, slow):
    """On a compact competitor: what remains where it has huge pages, too, and the ratio of a step
    that takes as long as its parts alone, or of one on tensors that are known. On a dense one: the
    ratio of a step whose whole cache lines move at triad bandwidth."""
    taken, ratio = found.median(name, slow), found.ratio(name, slow)
    if not ratio:
        return ""
    if slow != COMPACT:
        limit = taken / lines_bound(found.cases[name], found.ceilings)
        return (
            f"whole cache lines at triad bandwidth: {limit:.1f}, step at {ratio / limit:.2f} of it"
        )
    notes = []
    if huge := found.ratio(name, COMPACT_HUGE):
        notes.append(f"with huge pages for both: {huge:.2f}")
    if prepared := found.ratio(name, COMPACT, PREPARED):
        notes.append(f"prepared, as SelectiveAdamW steps: {prepared:.2f}")
    parts = [found.median(name, part) for part in PARTS]
    if all(parts):
        notes.append(
            f"its parts alone: {taken / sum(parts):.2f}, step at"
            f" {sum(parts) / found.median(name):.2f} of them"
        )
    return "; ".join(notes)


def _note_of_lines(found, name):
    """On useful bytes of columns.

    The share that a step would reach whose whole cache lines move at triad bandwidth.
    """
    reached = _of_lines_bound(found, name) if found.cases[name].kind == "columns" else None
    if not reached:
        return ""
    return (
        f"whole cache lines at triad bandwidth: {found.of_bound(name) / reached:.2f}, step at"
        f" {reached:.2f} of it"
    )


def extra(size, threads):
    """Whether one and several threads give the same bits."""
    if threads == 1:
        return [], []
    shape = (128, 192) if size == "tiny" else (1024, 2048)
    same = all(
        _same_bits(kind, shape, threads) for kind in ("rows", "columns", "blocks", "entries")
    )
    line = f"same bits with 1 and {threads} threads (1: yes)"
    return [], [Must(OP, "same_bits", line, threads, float(same), 1)]


def _same_bits(kind, shape, threads):
    results = []
    for number in (1, threads):
        torch.manual_seed(0)
        torch.set_num_threads(number)
        setting = Setting(Case("", kind, 0.1, "bfloat16", shape))
        step = setting.ours()
        for _ in range(3):
            step()
        results.append(setting.stepped)
    return all(torch.equal(a, b) for a, b in zip(*results))
