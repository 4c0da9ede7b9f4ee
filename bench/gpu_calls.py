"""What bench/gpu.sh runs: stages in two calls, each stage within its seconds of one table.

    python -m bench.gpu_calls [1] [2] [STAGE ...]     nothing named: both calls
    python -m bench.gpu_calls table                   what the run in RESULTS knows so far
    python -m bench.gpu_calls carry [90]              a build for another machine, in CARRY

Every stage is a process of its own that writes a row as soon as it knows it. A stage that runs past
its seconds, or a script that is stopped, costs what was not known yet; the table is printed in any
case, and after a kill `table` prints it.
"""

import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from bench import gpu_children, gpu_results
from bench.gpu_results import OK, RED, SKIPPED, Results

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {1: 560.0, 2: 300.0}  # seconds of a call, its table included
FOR_THE_TABLE = 5.0
POLL = 0.05
CAUGHT = 42  # the status of a checker that found errors
NO_TORCH = "{python} has no torch"
NO_GPU = "no GPU that torch can use (DEVICE=cpu tries the scripts at tiny sizes)"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a call. seconds: all that it may take. command: of python, without python."""

    name: str
    call: int
    seconds: float
    command: tuple[str, ...]
    about: str


DEVICE, SIZE = "{device}", "{size}"  # filled in where a stage is run
OPS = ("-m", "bench.gpu_ops", "--device", DEVICE, "--size", SIZE)
MODEL = ("-m", "bench.gpu_model", "--device", DEVICE, "--size", SIZE)
REPEATS = ("-m", "bench.gpu_checks", "--device", DEVICE, "--stage", "repeats", "--repeats", "20")
# The budgets, all of them: 535 s in the first call and 280 in the second leave the rest of 15
# minutes to the start of the machine and to copying.
STAGES = (
    Stage("build", 1, 150, ("-m", "bench.gpu_build"), "the package in place, or a carried build"),
    Stage("truth", 1, 60, ("-m", "bench.gpu_truth", "--device", DEVICE), "ops against references"),
    Stage("ops", 1, 170, OPS, "what the device does at best, every op against its floor"),
    Stage("model", 1, 155, MODEL, "ways of training: five fp32 steps, then time and memory"),
    Stage("ready", 2, 20, ("-m", "bench.gpu_build", "--only-look"), "the build is still there"),
    Stage("memcheck", 2, 60, ("-m", "bench.gpu_memcheck"), "ops under a memory checker"),
    Stage("repeats", 2, 45, REPEATS, "20 times the same bits on poisoned memory"),
    Stage("kernels", 2, 80, ("-m", "bench.gpu_tests", "kernels"), "the kernels' own tests"),
    Stage("graph", 2, 30, ("-m", "bench.gpu_tests", "graph"), "steps replayed from a CUDA graph"),
    Stage("tests", 2, 45, ("-m", "bench.gpu_tests", "tests"), "the other tests' GPU cases"),
)
NEED_THE_BUILD = {"ready", "build"}


class Stopped(BaseException):
    """The script is told to end; the argument is the signal's name."""


def chosen(words: Sequence[str], stages: Sequence[Stage] = STAGES) -> list[Stage]:
    """The stages that are named, by themselves or by their call; all of them where none is.

    Raises ValueError for a word that names none.
    """
    if not words:
        return list(stages)
    found: list[Stage] = []
    for word in words:
        mine = [stage for stage in stages if word in (stage.name, str(stage.call))]
        if not mine:
            names = ", ".join(stage.name for stage in stages)
            raise ValueError(f"no stage {word}: 1, 2, table, {names}")
        found += mine
    return found


def seconds_of(stage: Stage, environment: Mapping[str, str]) -> float:
    """What a stage may take: of the table, or BUDGET_<NAME>."""
    return float(environment.get(f"BUDGET_{stage.name.upper()}", stage.seconds))


@dataclasses.dataclass(frozen=True)
class Spent:
    """Seconds of a clock, and of processors in processes that have ended."""

    elapsed: float
    processor: float

    @classmethod
    def now(cls, clock: Callable[[], float]) -> "Spent":
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return cls(clock(), used.ru_utime + used.ru_stime)

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(self.elapsed - other.elapsed, self.processor - other.processor)


def run_stage(stage: Stage, seconds: float, command: Sequence[str], folder: Path) -> int | None:
    """The status of a stage, None where it ran past its seconds.

    All that it prints goes to a log in the folder, and from there to the standard output: a script
    that is killed takes no pipe away from the stage.
    """
    log = folder / f"{stage.name}.log"
    with log.open("wb") as out, log.open("rb") as seen:
        child = gpu_children.start(
            command, own_group=True, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT
        )
        limit = time.monotonic() + seconds
        try:
            while child.poll() is None and time.monotonic() < limit:
                _show(seen.read())
                time.sleep(POLL)
            status = child.poll()
        finally:
            gpu_children.end(child)
            _show(seen.read())
    return status


def _show(text: bytes) -> None:
    if text:
        sys.stdout.write(text.decode(errors="replace"))
        sys.stdout.flush()


def judge(stage: Stage, status: int | None, seconds: float, spent: Spent, results: Results) -> None:
    """The last row of a stage: what it took of its seconds. What it found it has written itself."""
    if status is None:
        said = f"ran past its {seconds:g} s; the rows it wrote stand"
    elif status == CAUGHT:
        said = f"the memory checker found errors, see {stage.name}.log"
    elif status != 0:
        said = f"ended with status {status}, see {stage.name}.log"
    else:
        said = f"ended within its {seconds:g} s"
    note = f"{spent.processor:.1f} s of processors"
    kind = OK if status == 0 else RED
    results.add(stage.name, said, status=kind, value=spent.elapsed, unit="s", note=note)


def run_stages(
    stages: Sequence[Stage],
    commands: Callable[[Stage], Sequence[str]],
    results: Results,
    folder: Path,
    environment: Mapping[str, str],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """One after the other; a call that has no time left skips what remains and says so."""
    begun: dict[int, float] = {}
    for stage in stages:
        from_begin = clock() - begun.setdefault(stage.call, clock())
        left = LIMITS[stage.call] - FOR_THE_TABLE - from_begin
        seconds = min(seconds_of(stage, environment), left)
        if seconds <= 0:
            results.add(stage.name, "no time is left in this call", status=SKIPPED)
            continue
        begin = Spent.now(clock)
        try:
            status = run_stage(stage, seconds, commands(stage), folder)
        except Stopped as why:
            took = clock() - begin.elapsed
            note = f"stopped by {why} after {took:.0f} s; the rows it wrote stand"
            results.add(stage.name, note, status=RED)
            raise
        judge(stage, status, seconds, Spent.now(clock) - begin, results)


@contextmanager
def stoppable() -> Iterator[None]:
    """Signals that ask for an end raise Stopped."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in before:  # a second one would end the table
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(signal.Signals(number).name)

    asking = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before: dict[int, Any] = {each: signal.signal(each, stop) for each in asking}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def of_python(stage: Stage, device: str) -> list[str]:
    """The command of a stage on a device; elsewhere than on a GPU sizes are tiny."""
    filled = {DEVICE: device, SIZE: "full" if device == "cuda" else "tiny"}
    command = [filled.get(word, word) for word in stage.command]
    each = os.environ.get("SECONDS_EACH")
    if each and stage.name in ("ops", "model"):
        command += ["--seconds", each]
    return [interpreter(), *command]


def interpreter() -> str:
    """The Python that has torch, as bench/gpu.sh found it."""
    return os.environ.get("PYTHON", sys.executable)


def why_not(device: str) -> str:
    """Why nothing can run here; empty where it can."""
    question = "import torch, sys; sys.exit(3 if torch.cuda.is_available() else 4)"
    status = subprocess.run([interpreter(), "-c", question], stderr=subprocess.DEVNULL).returncode
    if status not in (3, 4):
        return NO_TORCH.format(python=interpreter())
    return NO_GPU if device == "cuda" and status == 4 else ""


def needs_build(stages: Sequence[Stage], device: str) -> bool:
    """Whether a later stage is asked for alone, in a copy that was never built."""
    if device == "cpu" or stages[0].name in NEED_THE_BUILD:
        return False
    asked = [interpreter(), "-c", "import sparse_ft._C, sparse_ft.kernels"]
    return subprocess.run(asked, cwd=ROOT, stderr=subprocess.DEVNULL).returncode != 0


def _pack_cache(folder: Path) -> None:
    from bench import gpu_build  # which imports this file

    try:
        gpu_build.pack_cache(folder)
    except OSError as why:
        print(f"Triton's cache is not among the results: {why}")


def main(words: Sequence[str]) -> int:
    """The exit status: 0, 1 where a row is red, 2 for words that name no stage."""
    if list(words) == ["table"]:
        return gpu_results.main(["table"])
    if words and words[0] == "carry":
        command = ["-m", "bench.gpu_build", "--carry", *(words[1:] or ["90"])]
        return subprocess.run([sys.executable, *command], cwd=ROOT).returncode
    device = os.environ.setdefault("DEVICE", "cuda")
    try:
        stages = chosen(words)
    except ValueError as why:
        print(why, file=sys.stderr)
        return 2
    folder = gpu_results.folder().resolve()
    os.environ["RESULTS"] = str(folder)
    os.environ.setdefault("RUN", time.strftime("%Y%m%dT%H%M%S"))
    status = 0
    try:
        with stoppable():
            _run(stages, device, folder)
    except Stopped as why:
        status = 128 + getattr(signal, str(why))
    print()
    red = gpu_results.main(["table"])
    return status or red


def _run(stages: list[Stage], device: str, folder: Path) -> None:
    results = Results()
    missing = why_not(device)
    if missing:
        for stage in stages:
            results.add(stage.name, missing, status=SKIPPED)
        return
    if needs_build(stages, device):
        stages = [*chosen(["build"]), *stages]
    run_stages(stages, lambda stage: of_python(stage, device), results, folder, os.environ)
    if device == "cuda" and any(stage.call == 1 for stage in stages):
        _pack_cache(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
