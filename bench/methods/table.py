"""The table of the rows there are, and the paired test against LoRA."""

import math
import statistics

from bench.methods.rows import BYTES, RUN
from bench.methods.work import Rows

LORA = "lora"


def student_t(t, freedom):
    """The chance of a Student's |t| at least this large, by Simpson's rule on its density."""
    if math.isnan(t):
        return math.nan
    if math.isinf(t):
        return 0.0
    scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)

    def density(angle):  # x = tan(angle) spreads the line over a quarter turn
        x = math.tan(angle)
        return scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2) * (1 + x * x)

    steps = 2000
    begin, end = math.atan(abs(t)), math.pi / 2 - 1e-9
    width = (end - begin) / steps
    inner = sum((4 if n % 2 else 2) * density(begin + n * width) for n in range(1, steps))
    return min(1.0, 2 * width / 3 * (density(begin) + inner + density(end)))


def paired(ours, theirs):
    """(mean difference, two-sided p) of a paired t test; p is nan with less than two pairs."""
    differences = [a - b for a, b in zip(ours, theirs)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return mean, math.nan
    spread = statistics.stdev(differences)
    if spread == 0:
        return mean, 1.0 if mean == 0 else 0.0
    return mean, student_t(mean / (spread / math.sqrt(len(differences))), len(differences) - 1)


def by_seed(rows, method, rate):
    """{seed: row} of a method at a rate."""
    return {
        row.seed: row
        for row in rows
        if row.kind == RUN and row.method == method and rate and abs(row.lr / rate - 1) < 1e-2
    }


def line_of(rows, known, method):
    """The cells of one method; None where it has no row."""
    rate = known.best_rate(method)
    mine = by_seed(rows, method, rate)
    if not mine:
        return None
    tests = [row.test for row in mine.values()]
    base = by_seed(rows, LORA, known.best_rate(LORA))
    common = sorted(mine.keys() & base.keys())
    against = "" if method == LORA else _against(mine, base, common)
    bytes_of = {row.method: row for row in rows if row.kind == BYTES}
    weighed = bytes_of.get(method)
    spread = f" ± {_figure(statistics.stdev(tests))}" if len(tests) > 1 else ""
    first = next(iter(mine.values()))
    return {
        "method": method,
        "test": f"{_figure(statistics.fmean(tests))}{spread}",
        "seeds": str(len(tests)),
        "against LoRA": against,
        "validation": _figure(statistics.fmean(row.validation for row in mine.values())),
        "lr": f"{rate:.2g}" + ("" if len(known.tried(method)) >= 3 else " (untuned)"),
        "trains": f"{first.trainable:,}",
        "state": _mib(weighed and weighed.optimizer_bytes),
        "held": _mib(weighed and weighed.saved_bytes),
        "peak": _mib(weighed and weighed.peak_bytes),
        "s/step": f"{_undisturbed(rows, method):.3f}",
        "kept": f"{100 * statistics.fmean(r.kept for r in mine.values()):.1f} %",
        "_mean": statistics.fmean(tests),
    }


def _undisturbed(rows, method):
    """Seconds a step of its least disturbed run, at whatever rate: other load only adds to them."""
    runs = [row for row in rows if row.kind == RUN and row.method == method and not row.failed]
    return min((row.seconds_per_step for row in runs), default=math.nan)


def _against(mine, base, common):
    if not common:
        return ""
    mean, p = paired([mine[s].test for s in common], [base[s].test for s in common])
    chance = "" if math.isnan(p) else f", p = {p:.2g}"
    return f"{mean:+.4f}{chance}"


def _figure(value):
    return f"{value:.4f}" if value < 2 else f"{value:.3f}"


def _mib(size):
    return f"{size / 2**20:.1f}" if size else ""


def table(rows, methods, task, setting, larger_is_better, measure):
    """Markdown; the best test score first."""
    rows = [row for row in rows if row.task == task and row.setting == setting]
    known = Rows(rows, larger_is_better)
    lines = [line for name in methods if (line := line_of(rows, known, name)) is not None]
    if not lines:
        return f"{task}: no row yet"
    lines.sort(key=lambda line: -line["_mean"] if larger_is_better else line["_mean"])
    names = [name for name in lines[0] if name != "_mean"]
    text = [
        f"{task}, {setting}: test {measure}, mean ± standard deviation over seeds; rates chosen on"
        " validation with seed 0; against LoRA: mean difference over the seeds that both have, and"
        " p of a paired t test (two-sided); state, held for the backward and peak in MiB; s/step:"
        " the median of its least disturbed run; kept: of the second task.",
        "",
        "| " + " | ".join(names) + " |",
        "|" + "---|" * len(names),
    ]
    text += ["| " + " | ".join(line[name] for name in names) + " |" for line in lines]
    failed = [row for row in rows if row.failed]
    text += [f"\n{row.method} at {row.lr:g}: {row.failed}" for row in failed]
    return "\n".join(text)
