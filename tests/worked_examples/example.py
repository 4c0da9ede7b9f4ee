"""A worked example: files that are new, and lines that come before a line that is there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ROOMS = ("sparse_ft", "kernels", "csrc", "CMakeLists.txt", "tests/native")
Edits = dict[str, list[tuple[str, str]]]  # file -> (the line that is there, what comes before it)


def apply(name: str, edits: Edits, to: Path) -> list[str]:
    """The sources copied to a folder, with the example; returns the files that it touches."""
    for room in ROOMS:
        source, target = ROOT / room, to / room
        if source.is_file():
            shutil.copy(source, target)
        else:
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    # An installed compiled part, which has nothing of the example, is not found.
    (to / "sparse_ft" / "_C.py").write_text("raise ImportError('left out')\n")
    new = [path.relative_to(HERE / name) for path in (HERE / name).rglob("*") if path.is_file()]
    new = [path for path in new if path.suffix != ".pyc"]
    for path in new:
        assert not (to / path).exists(), f"{path} is there already"
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / name / path, to / path)
    for file, insertions in edits.items():
        for there, added in insertions:
            insert(to / file, there, added)
    return sorted([*map(str, new), *edits])


def insert(file: Path, there: str, added: str) -> None:
    """Put lines before the first line that begins with `there`, whatever it is indented by."""
    lines = file.read_text().splitlines(keepends=True)
    at = next((i for i, line in enumerate(lines) if line.lstrip().startswith(there)), None)
    assert at is not None, f"{file.name} has no line that begins with {there!r}"
    file.write_text("".join([*lines[:at], added, *lines[at:]]))


def run(folder: Path, *command: str, **environment: str) -> str:
    """What Python prints of a command on the sources of a folder."""
    known = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", **environment}
    known["PYTHONWARNINGS"] = "ignore"  # that the compiled part is missing
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=known,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
