"""Stages `kernels`, `graph` and `tests`: test files on a GPU, in a process for each core but two.

    python -m bench.gpu_tests kernels | graph | tests

A row for each file as soon as its last test has run: what a cut leaves is whole. As a plugin of
pytest (`-p bench.gpu_tests`) this file writes these rows.
"""

import collections
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import gpu_children
from bench.gpu_calls import ROOT
from bench.gpu_results import OK, RED, SKIPPED, Results

STAGE = "GPU_TESTS_STAGE"  # in the environment: in whose name rows are written
TESTS = ROOT / "tests"
KERNELS = TESTS / "kernels"
# Rooms whose tests take a `device`; others have none that a GPU changes.
ROOMS = ("ops", "nn", "lean_modules", "optim")
PYTEST = ("-m", "pytest", "-q", "--tb=line", "--import-mode=importlib", "-p", "no:cacheprovider")
NOTHING_COLLECTED = 5
NAMED = 3  # failures whose names go into a row


@dataclass(frozen=True)
class Work:
    """Groups of test files, a process each; what pytest is told beside; the environment."""

    groups: list[list[Path]]
    options: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


def kernels() -> Work:
    """Each file of the kernels alone, compiled: triton decides at import whether it interprets."""
    files = sorted(KERNELS.glob("interpreted_*.py"), key=lambda path: -path.stat().st_size)
    options = ("-o", "addopts=", "-o", "python_files=interpreted_*.py")
    paths = os.pathsep.join([str(KERNELS), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = (("TRITON_INTERPRET", "0"), ("PYTHONPATH", paths))
    return Work([[path] for path in files], options, environment)


def graph() -> Work:
    """What holds a step in a CUDA graph."""
    files = sorted(TESTS.rglob("test_*captur*.py"))
    return Work([[path] for path in files], ("-k", "cuda or graph"))


def tests(workers: int) -> Work:
    """All others that take a device, on the GPU alone, in groups of about one size."""
    files = [path for room in ROOMS for path in (TESTS / room).glob("test_*.py")]
    files += TESTS.glob("test_*.py")
    files = [path for path in files if is_of_devices(path.read_text(encoding="utf-8"))]
    return Work(split(files, workers), ("-k", "cuda"))


def is_of_devices(source: str) -> bool:
    """Whether a file has a test that takes a device, or is marked as one on every device."""
    return re.search(r"on_device|def test\w*\([^)]*\bdevice\b", source) is not None


def split(files: Sequence[Path], workers: int) -> list[list[Path]]:
    """At most `workers` groups; the largest file first, each to the smallest group."""
    groups: list[list[Path]] = [[] for _ in range(min(workers, len(files)))]
    sizes = [0] * len(groups)
    for path in sorted(files, key=lambda path: (-path.stat().st_size, path)):
        least = sizes.index(min(sizes))
        groups[least].append(path)
        sizes[least] += path.stat().st_size
    return groups


def run(stage: str, work: Work, workers: int, results: Results) -> bool:
    """Whether all is well. At most `workers` processes at a time."""
    plugin = [*PYTEST, "-p", "bench.gpu_tests", *work.options]
    given = {**os.environ, "OMP_NUM_THREADS": "1", STAGE: stage, **dict(work.environment)}
    given.pop("PYTEST_ADDOPTS", None)
    waiting, running, well = collections.deque(work.groups), {}, True
    while waiting or running:
        while waiting and len(running) < workers:
            files = waiting.popleft()
            command = [sys.executable, *plugin, *map(str, files)]
            running[gpu_children.start(command, cwd=ROOT, env=given)] = files
        for child in [child for child in running if child.poll() is not None]:
            files = running.pop(child)
            well = _judge(stage, files, child.returncode, results) and well
        time.sleep(0.02)
    return well


def _judge(stage: str, files: Sequence[Path], status: int, results: Results) -> bool:
    """What a process says at its end that none of its tests could say."""
    if status in (0, 1, NOTHING_COLLECTED):  # failed tests have rows
        return status != 1
    names = " ".join(path.stem for path in files)
    results.add(stage, names, status=RED, note=f"pytest ended with status {status}")
    return False


class Rows:
    """The plugin: a row of a file once a test of another one begins, or the session ends."""

    def __init__(self, stage: str):
        self.stage, self.results = stage, Results()
        self.file = ""
        self.counts: collections.Counter[str] = collections.Counter()
        self.failed: list[str] = []
        self.begun = time.monotonic()

    def pytest_runtest_logreport(self, report: Any) -> None:
        file = report.nodeid.partition("::")[0]
        if file != self.file:
            self.flush()
            self.file, self.begun = file, time.monotonic()
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
        if report.outcome == "failed":
            self.failed.append(report.nodeid.partition("::")[2])

    def pytest_sessionfinish(self) -> None:
        self.flush()

    def flush(self) -> None:
        if not self.counts:
            return
        note = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.counts.items()))
        if self.failed:
            note += f": {', '.join(self.failed[:NAMED])}"
            note += ", …" if len(self.failed) > NAMED else ""
        took = time.monotonic() - self.begun
        passed = OK if self.counts["passed"] else SKIPPED
        status = RED if self.failed else passed
        self.results.add(
            self.stage, Path(self.file).stem, status=status, value=took, unit="s", note=note
        )
        self.counts.clear()
        self.failed.clear()


def pytest_configure(config: Any) -> None:
    config.pluginmanager.register(Rows(os.environ[STAGE]), "rows of a GPU run")


def main(arguments: Sequence[str]) -> int:
    (stage,) = arguments
    results = Results()
    if subprocess.run([sys.executable, "-c", "import pytest"], capture_output=True).returncode:
        results.add(stage, "pytest is not installed", status=SKIPPED)
        return 0
    workers = max(1, (os.cpu_count() or 1) - 2)
    work = {"kernels": kernels, "graph": graph, "tests": lambda: tests(workers)}[stage]()
    if not work.groups:
        results.add(stage, "no file has a test of a GPU", status=RED)
        return 1
    run(stage, work, workers, results)
    return 0  # what is red has a row


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
