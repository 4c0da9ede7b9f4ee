"""The command line: choose the task, run each method in its own process, print and write what came
out.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

from bench.machine import ROOT
from bench.runner import RunFailed, run_apart
from demo import assets, chart, report
from demo.data import read_csv, text_task
from demo.errors import DemoError
from demo.methods import (
    KINDS,
    LORA_SIZE,
    RECIPES,
    SCORE_BATCHES,
    STRUCTURES,
    WAYS,
    methods_of,
    parse_lr,
)
from demo.model import check_folder, load_tokenizer
from demo.train import Settings, memory, run
from demo.tune import tune

OUT = ROOT / "bench" / "out"
STEPS = (
    70  # a run of the default task; five runs take five minutes on two quiet cores, all nine ten
)
DEFAULT_KINDS = ("full", "lora", "lean", "head")


def parser():
    parse = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    add = parse.add_argument
    add(
        "--model",
        metavar="FOLDER",
        help="a pretrained text encoder written by save_pretrained (default: MiniLM-L6)",
    )
    add(
        "--data",
        metavar="FILE.csv",
        help="your texts, columns text and label (default: Rotten Tomatoes reviews)",
    )
    add(
        "--methods",
        help=(
            f"all, or comma-separated of {', '.join(KINDS)} (default: {','.join(DEFAULT_KINDS)}; to"
            " tune: all)"
        ),
    )
    add(
        "--structure",
        default="columns,shira",
        help=(
            f"of ours, comma-separated, of {', '.join(STRUCTURES)}, chosen by gradient; or a"
            f" recipe: {', '.join(RECIPES)}"
        ),
    )
    add(
        "--density",
        default=f"{LORA_SIZE},0.01",
        help="of ours, comma-separated shares; lora: as many as LoRA trains",
    )
    add(
        "--steps", type=int, default=STEPS, help="training steps of each run (default: %(default)s)"
    )
    add("--batch-size", type=int, default=32, help="examples (default: %(default)s)")
    add(
        "--lr",
        help=(
            "one number for every method, or full=5e-5,columns=1e-3 (default: tuned, see"
            " methods.py)"
        ),
    )
    add(
        "--seed",
        type=int,
        default=0,
        help="of the head, the order and the dropout (default: %(default)s)",
    )
    add(
        "--offline",
        action="store_true",
        help="fetch nothing: scikit-learn's digits, a transformer pre-trained here",
    )
    add(
        "--pretraining-steps",
        type=int,
        default=120,
        help="of that transformer (default: %(default)s)",
    )
    add("--out", type=Path, default=OUT, help="folder of demo.md, demo.csv and demo.png")
    add(
        "--tune",
        action="store_true",
        help="print validation accuracy over a grid of learning rates instead",
    )
    return parse


def names_of(text, known, option):
    """The comma-separated names, each of which must be known."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise DemoError(f"{option}: unknown {name!r}; choose from {', '.join(known)}")
    if not names:
        raise DemoError(f"{option}: choose from {', '.join(known)}")
    return names


def kinds_of(text, tune):
    """The kinds that --methods names; without it the few of DEFAULT_KINDS, or all where their rates
    are to be tuned.
    """
    if text is None:
        return KINDS if tune else DEFAULT_KINDS
    return KINDS if text == "all" else names_of(text, KINDS, "--methods")


def densities_of(text):
    """[share or LORA_SIZE] of the comma-separated text."""
    found = []
    for item in filter(None, text.split(",")):
        try:
            share = LORA_SIZE if item == LORA_SIZE else float(item)
        except ValueError:
            raise DemoError(f"--density: {item!r} is neither a number nor {LORA_SIZE}") from None
        if share != LORA_SIZE and not 0 < share <= 1:
            raise DemoError(f"--density: {item} is not a share in (0, 1], e.g. 0.01 for 1 %")
        found.append(share)
    if not found:
        raise DemoError(f"--density: give a share, e.g. 0.01 for 1 %, or {LORA_SIZE}")
    return found


def settings_of(args):
    for option, value in (("--steps", args.steps), ("--batch-size", args.batch_size)):
        if value < 1:
            raise DemoError(f"{option}: {value} is not a positive number")
    return Settings(args.steps, args.batch_size, args.seed, parse_lr(args.lr))


def fallback(args, why):
    if args.model or args.data:
        raise DemoError(f"{why}; give both --model and --data, which fetches nothing, or neither")
    print(
        f"Note: {why}.\nRunning on scikit-learn's digits with a small transformer pre-trained here"
        " instead.\n"
    )
    from demo.digits import digits_task

    return digits_task(args.out / "small-transformer", args.pretraining_steps)


def choose_task(args):
    """The Task of the arguments; fetches only what they leave open."""
    if args.model:
        check_folder(args.model)
    rows = read_csv(args.data) if args.data else None
    if not (args.model and args.data):
        why = "--offline was given" if args.offline else assets.fetch()
        if why:
            return fallback(args, why)
    if rows is None:
        rows = read_csv(assets.reviews_file(), keep=lambda row: row["source"] == "rotten_tomatoes")
    folder = args.model or assets.encoder_folder()
    name = Path(args.data).name if args.data else "Rotten Tomatoes reviews"
    return text_task(name, rows, folder, load_tokenizer(folder))


def run_all(task, methods, settings):
    """([row], interrupted) of the methods in order.

    A run that fails is reported and leaves the others alone.
    """
    rows = []
    try:
        for method in methods:
            try:
                row = run_apart(run, task, method, settings)
                rows.append(row | run_apart(memory, task, method, settings))
            except RunFailed as failure:
                print(f"\n{method.label} failed: {failure}", file=sys.stderr)
    except KeyboardInterrupt:
        return rows, True
    return rows, False


def conclude(task, rows, settings, out):
    """Print the table, write the three files and say where they are."""
    model = (
        "MiniLM-L6"
        if task.checkpoint == str(assets.encoder_folder())
        else Path(task.checkpoint).name
    )
    title = f"{model} on {task.name}: {settings.steps} steps of {settings.batch_size}"
    notes = report.legend(task, rows, SCORE_BATCHES)
    print(f"\n{title}\n\n{report.table(rows)}\n\n{notes}\n")
    for path in [*report.write(out, title, rows, notes), chart.draw(out / "demo.png", title, rows)]:
        print(f"wrote {path}")


def demo(args):
    """Exit status of one demo."""
    settings = settings_of(args)
    methods = methods_of(
        kinds_of(args.methods, args.tune),
        names_of(args.structure, WAYS, "--structure"),
        densities_of(args.density),
    )
    begin = time.perf_counter()
    task = choose_task(args)
    print(
        f"{task.name}: {len(task.train):,} training, {len(task.validation):,} validation,"
        f" {len(task.test):,} test examples without duplicates; {len(methods)} runs of"
        f" {settings.steps} steps",
        flush=True,
    )
    if args.tune:
        tune(task, methods, settings)
        return 0
    rows, interrupted = run_all(task, methods, settings)
    if interrupted:
        print(f"\ninterrupted after {len(rows)} of {len(methods)} runs", file=sys.stderr)
    if rows:
        conclude(task, rows, settings, args.out)
    print(f"{(time.perf_counter() - begin) / 60:.1f} minutes")
    return 130 if interrupted else 1 if len(rows) < len(methods) else 0


def main(argv=None):
    # Being told to end is like Ctrl-C: the run ends with us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return demo(parser().parse_args(argv))
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
