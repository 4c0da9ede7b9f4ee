"""Results of a run on a GPU: each row is in a CSV and a JSON-lines file as soon as it is known.

A short table at the end.

python -m bench.gpu_results note STAGE STATUS TEXT...   adds a row;   ... table   prints what is
there and ends with 1 on red
"""

import csv
import io
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bench.table import number

OK, RED, SHORT, SKIPPED = "ok", "red", "short", "skipped"


@dataclass(frozen=True)
class Row:
    """One variant of one case. floor: in the same unit.

    fraction: floor over value; ratio: its value over ours.
    """

    stage: str
    case: str
    variant: str = ""
    status: str = OK
    value: float | None = None
    unit: str = "us"
    p20: float | None = None
    p80: float | None = None
    rounds: int | None = None
    floor: float | None = None
    fraction: float | None = None
    ratio: float | None = None
    note: str = ""
    run: str = field(default_factory=lambda: os.environ.get("RUN", ""))


def folder() -> Path:
    """Where results go: RESULTS, or OUT where a machine takes its files from there."""
    named = os.environ.get("RESULTS") or os.environ.get("OUT")
    return Path(named or Path(__file__).parent / "out" / "gpu")


class Results:
    """Appends rows to `<folder>/results.csv` and `.jsonl`, and says each as it comes. stamp: goes
    into each JSON line.

    A row is one write to the end of each file: several processes may add rows, and a process that
    is killed leaves whole ones.
    """

    def __init__(self, where: Path | None = None, **stamp: str):
        self.where, self.stamp, self.red = Path(where or folder()), stamp, False
        self.where.mkdir(parents=True, exist_ok=True)

    def add(self, *arguments: Any, **keywords: Any) -> None:
        """The arguments of a `Row`."""
        row = Row(*arguments, **keywords)
        found = asdict(row)
        line_of_json = json.dumps({**found, **self.stamp}) + "\n"
        _append(self.where / "results.jsonl", line_of_json)
        cells = ["" if value is None else value for value in found.values()]
        _append(self.where / "results.csv", _csv(cells), head=_csv(found))
        self.red = self.red or row.status == RED
        print(line(row), flush=True)


def why_of(problem: Exception) -> str:
    """One line on an error."""
    said = str(problem).splitlines() or [""]
    return f"{type(problem).__name__}: {said[0][:250]}"


def _csv(cells: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _append(path: Path, text: str, head: str = "") -> None:
    """`text` at the end of a file, by one write; `head` first where there is no such file yet."""
    end = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    if head:
        try:
            _write(path, head, end | os.O_EXCL)
        except FileExistsError:
            pass
    _write(path, text, end)


def _write(path: Path, text: str, flags: int) -> None:
    file = os.open(path, flags, 0o644)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


def read(where: Path | None = None) -> list[Row]:
    """The rows of a folder; what a cut left of a line is no row."""
    path = Path(where or folder()) / "results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [row for row in map(_row_of, lines) if row is not None]


def _row_of(text: str) -> Row | None:
    known = {f.name for f in fields(Row)}
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return Row(**{name: value for name, value in found.items() if name in known})


def this_run(where: Path | None = None) -> list[Row]:
    """The rows of the run that RUN names; of all runs where it names none."""
    return [row for row in read(where) if row.run == os.environ.get("RUN", row.run)]


def line(row, brief=False):
    cells = [f"{row.stage:8s} {row.status:7s} {row.case}"]
    if row.variant:
        cells.append(row.variant)
    if row.value is not None:
        cells.append(f"{number(row.value)} {row.unit}")
    if row.fraction is not None:
        cells.append(f"{100 * row.fraction:.0f} % of its roofline")
    if row.ratio is not None:
        cells.append(f"{row.ratio:.2f} x ours")
    return "  ".join([*cells, *([f"[{row.note}]"] if row.note and not brief else [])])


def table(where=None):
    """Every stage: how many rows of each status, then the lines that matter: ours, models, what is
    red, short or skipped.
    """
    rows, lines = this_run(where), []
    for stage in dict.fromkeys(row.stage for row in rows):
        mine = [row for row in rows if row.stage == stage]
        counts = {
            status: sum(row.status == status for row in mine)
            for status in (OK, SHORT, SKIPPED, RED)
        }
        lines.append(
            f"== {stage}: " + ", ".join(f"{n} {status}" for status, n in counts.items() if n)
        )
        shown = [
            row
            for row in mine
            if stage == "model" or row.variant in ("", "ours") or row.status != OK
        ]
        lines += [line(row, brief=row.variant == "ours" and row.status == OK) for row in shown]
    return "\n".join(lines or ["no results"])


def main(arguments):
    if arguments[:1] == ["note"] and len(arguments) >= 3:
        stage, status, *text = arguments[1:]
        Results().add(stage, " ".join(text), status=status)
        return 0
    if arguments == ["table"]:
        print(table())
        return int(any(row.status == RED for row in this_run()))
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
