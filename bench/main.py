"""The command line: test an op, measure it, print its table and how it stands to its promises,
write the results.
"""

import argparse
import sys
import time
from pathlib import Path

from tqdm import tqdm

from bench import machine, readme, suite, table
from bench.gate import Red, require_green
from bench.records import Must, Record, read, stamps, tally, write
from bench.runner import RunFailed, run_apart
from bench.suite import module_of

OPS = (
    "gather_selected",
    "scatter_selected",
    "selected_wgrad",
    "dense_product",
    "masked_adamw",
    "linear",
    "layer",
    "lean",
    "breakdown",
)
RESULTS = Path(__file__).resolve().with_name("results")
README = RESULTS.with_name("README.md")
INTERRUPTED = 130  # the exit status of what Ctrl-C ends
BAR = "{desc:17s} {percentage:3.0f} %|{bar:24}| {elapsed} {postfix}"


def parser():
    parse = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    add = parse.add_argument
    add("--op", default=",".join(OPS), help=f"comma-separated, of {', '.join(OPS)} (default: all)")
    add(
        "--size",
        choices=suite.SIZES,
        default="quick",
        help="quick: all ops in 15 minutes on two quiet cores (default: %(default)s)",
    )
    add(
        "--threads",
        default="1,2",
        help="comma-separated thread counts; those over the machine's cores are left out",
    )
    add("--out", type=Path, default=RESULTS, help="folder of the results (default: bench/results)")
    return parse


def budget(module, size, threads):
    """Seconds that the cases of one op are measured for."""
    counts = 1 if getattr(module, "ONLY_MOST_THREADS", False) else len(threads)
    return sum(case.seconds for case in module.cases(size)) * counts


def tested_at_once(ops):
    """The tests of all ops where they are green together, for one start of pytest.

    Else none, and each op runs its own.
    """
    tests = list(dict.fromkeys(test for op in ops for test in module_of(op).TESTS))
    begin = time.perf_counter()
    try:
        print(
            f"{require_green(', '.join(ops), tests)}, {time.perf_counter() - begin:.0f} s",
            flush=True,
        )
    except Red:
        print("some tests are red: each op runs its own", flush=True)
        return set()
    return set(tests)


def measure(op, size, threads, green):
    """([Record], [Must]) of one op, under a bar that counts the seconds of its budget.

    Raises Red unless its tests pass.

    Each thread count has a process of its own. green: tests that passed in this very command, which
    are not run again.
    """
    module = module_of(op)
    if getattr(module, "ONLY_MOST_THREADS", False):
        threads = threads[-1:]
    begin = time.perf_counter()
    tests = require_green(op, [test for test in module.TESTS if test not in green])
    green.update(module.TESTS)
    print(f"{op}: {tests}, {time.perf_counter() - begin:.0f} s", flush=True)
    quiet = 15 if not sys.stderr.isatty() else 0.2
    with tqdm(
        total=round(budget(module, size, threads), 2),
        desc=op,
        unit="s",
        mininterval=quiet,
        bar_format=BAR,
    ) as bar:

        def tick(seconds, what):
            bar.set_postfix_str(what, refresh=False)
            bar.update(seconds)

        parts = [run_apart(suite.run_alone, op, size, number, hear=tick) for number in threads]
    if hasattr(module, "apart"):
        parts.append(module.apart(size, threads[-1]))
    print(f"{op}: measured, {time.perf_counter() - begin:.0f} s in all", flush=True)
    return tuple([row for part in parts for row in part[i]] for i in range(2))


def write_results(out, op, records, musts):
    """Put one op's rows into the machine's files. Returns the Markdown of the op."""
    name = machine.name()
    stamp = {"machine": machine.line()}
    write(out / f"{name}.csv", records, Record, stamp)
    if musts:
        write(out / f"{name}.promises.csv", musts, Must, stamp)
    return table.document(op, records, musts, stamp)


def write_document(out):
    """<machine>.md: the tables of every op that the machine's csv files hold, in the
    order of OPS.
    """
    name = machine.name()
    records, musts = read(out / f"{name}.csv", Record), read(out / f"{name}.promises.csv", Must)
    marks = stamps(out / f"{name}.csv", Record)
    parts = []
    for op in OPS:
        rows = [r for r in records if r.op == op]
        if rows:
            parts.append(table.document(op, rows, [m for m in musts if m.op == op], marks[op]))
    path = out / f"{name}.md"
    path.write_text("# Results\n\n" + "\n".join(parts), encoding="utf-8")
    if out.resolve() == RESULTS:
        filled = readme.fill(
            README.read_text(encoding="utf-8"), readme.sections(records, musts, marks)
        )
        README.write_text(filled, encoding="utf-8")
    return path


def chosen(text, known, option):
    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        raise SystemExit(
            f"{option}: {'unknown ' + repr(wrong[0]) if wrong else 'nothing named'}; choose from"
            f" {', '.join(known)}"
        )
    return names


def thread_counts(text):
    """The counts of "1,2" that the machine has cores for."""
    try:
        counts = sorted({int(word) for word in text.split(",")})
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise SystemExit(f"--threads: expected counts such as 1,2, got {text!r}")
    return [n for n in counts if n <= machine.cores()] or [machine.cores()]


def main(arguments=None):
    args = parser().parse_args(arguments)
    ops, threads = chosen(args.op, OPS, "--op"), thread_counts(args.threads)
    print(machine.line(), flush=True)
    begin, done, measured, promised, status = time.perf_counter(), [], [], [], 0
    try:
        green = tested_at_once(ops) if len(ops) > 1 else set()
        for op in ops:
            try:
                records, musts = measure(op, args.size, threads, green)
            except (Red, RunFailed) as why:
                print(why if isinstance(why, Red) else f"{op}: {why}", file=sys.stderr, flush=True)
                status = 1
                continue
            print("\n" + write_results(args.out, op, records, musts), flush=True)
            measured += records
            promised += musts
            done.append(op)
    except KeyboardInterrupt:
        status = INTERRUPTED
    for line in table.unsteadiness(measured):
        print(line, file=sys.stderr, flush=True)
    conclude(
        args.out, promised, done, [op for op in ops if op not in done], time.perf_counter() - begin
    )
    return status


def conclude(out, promised, done, missing, seconds):
    """What a run ends with, an interrupted one too.

    Its promises, its files, what is not in them.
    """
    if promised:
        print("\nPromises (ratios inside this run)\n", *promised, f"\n{tally(promised)}", sep="\n")
    if done:
        print(f"\nwrote {write_document(out)} and the csv files beside it, after {seconds:.0f} s")
    if missing:
        print(f"\nnot measured: {', '.join(missing)}", file=sys.stderr)
