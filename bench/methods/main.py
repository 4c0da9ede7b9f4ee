"""The command line: run what is missing, a row at a time, and print the table."""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

from bench import machine
from bench.gate import Red, require_green
from bench.main import INTERRUPTED, RESULTS, chosen
from bench.methods import rows as rows_of
from bench.methods.methods import methods_of
from bench.methods.run import memory, run
from bench.methods.table import table
from bench.methods.tasks import SETTINGS, TASKS, Classification, Language
from bench.methods.work import Rows, jobs
from bench.runner import RunFailed, run_apart
from demo import assets
from demo.errors import DemoError

TESTS = ["tests/bench/test_methods.py"]
REAL = ("reviews", "text")
SEEDS = 5
KINDS = {"reviews": Classification, "tiny": Classification, "text": Language}


def parser():
    parse = argparse.ArgumentParser(prog="python -m bench --op methods", description=__doc__)
    add = parse.add_argument
    add("--task", default=",".join(REAL), help=f"comma-separated, of {', '.join(TASKS)}")
    add("--only", default="", help="comma-separated methods (default: all)")
    add("--seconds", type=float, default=float("inf"), help="begin no run that would end later")
    add("--seeds", type=int, default=SEEDS, help="of the best recipes and baselines (5)")
    add("--steps", type=int, help="of a run (300; text 40); another table than with the default")
    add("--threads", type=int, default=machine.cores(), help="of torch (all cores)")
    add("--table", action="store_true", help="run nothing: print the table of the rows there are")
    add("--untested", action="store_true", help="without the tests that else run first")
    add("--out", type=Path, default=RESULTS, help="folder of methods.csv and methods.md")
    return parse


def settings_of(task, args):
    setting = SETTINGS[task]
    return setting if args.steps is None else dataclasses.replace(setting, steps=args.steps)


def fetched(task):
    """Have a task's model and data. Raises DemoError that says what is missing."""
    if task == "tiny":
        return
    why = assets.fetch()
    if why is None and task == "text":
        why = assets.fetch(Path(__file__).with_name("requirements.txt"))
    if why:
        raise DemoError(why)


def run_job(task, setting, job, threads):
    """The row of a job; of one that fails a row that says why, so that it is not tried again."""
    what = run if job.kind == rows_of.RUN else memory
    try:
        return run_apart(what, task, setting, job.method, job.lr, job.seed, threads)
    except RunFailed as failure:
        print(f"{job.method} at {job.lr:g} failed: {failure}", file=sys.stderr, flush=True)
        why = str(failure).strip().splitlines()[-1][:200]
        return rows_of.Row(task, str(setting), job.kind, job.method, job.lr, job.seed, failed=why)


def work(task, setting, methods, args, deadline):
    """Run jobs until none is left or the time is over; returns how many were done."""
    path, done, longest = args.out / "methods.csv", 0, 0.0
    larger = KINDS[task].larger_is_better
    while True:
        mine = [r for r in rows_of.read(path) if (r.task, r.setting) == (task, str(setting))]
        job = jobs(methods, Rows(mine, larger), args.seeds)
        if job is None:
            return done
        longest = max([longest, *(row.wall_seconds for row in mine if row.wall_seconds > 0)])
        if time.monotonic() + longest > deadline:
            print(f"{task}: the time is over; the same command goes on from here", flush=True)
            return done
        row = run_job(task, setting, job, args.threads)
        rows_of.append(path, row)
        done += 1
        print(_told(row), flush=True)


def _told(row):
    score = f"validation {row.validation:.4f}, test {row.test:.4f}, kept {row.kept:.3f}, "
    what = score if row.kind == rows_of.RUN else f"peak {row.peak_bytes / 2**20:.0f} MiB, "
    return (
        f"{row.task} {row.method} lr {row.lr:g} seed {row.seed}: {what}"
        f"{row.seconds_per_step:.3f} s a step, {row.wall_seconds:.0f} s in all {row.failed}"
    )


def write_table(tasks, args):
    """Print the tables of all rows there are, and write them beside these."""
    parts = []
    every = rows_of.read(args.out / "methods.csv")
    for task in tasks:
        setting = settings_of(task, args)
        kind = KINDS[task]
        parts.append(
            table(every, methods_of(task, setting.steps), task, str(setting),
                  kind.larger_is_better, kind.measure)
        )  # fmt: skip
    text = "\n\n".join(parts) + "\n"
    print("\n" + text, flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "methods.md").write_text("# Methods\n\n" + text, encoding="utf-8")


def main(arguments=None):
    args = parser().parse_args(arguments)
    tasks = chosen(args.task, TASKS, "--task")
    deadline = time.monotonic() + args.seconds
    status = 0
    try:
        if not args.table:
            if not args.untested:
                print(require_green("methods", TESTS, jobs=1), flush=True)
            for task in tasks:
                fetched(task)
                setting = settings_of(task, args)
                methods = methods_of(task, setting.steps)
                if args.only:
                    names = chosen(args.only, methods, "--only")
                    methods = {name: methods[name] for name in names}
                work(task, setting, methods, args, deadline)
    except (Red, DemoError) as why:
        print(f"error: {why}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        status = INTERRUPTED
    write_table(tasks, args)
    return status
