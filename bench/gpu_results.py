"""Results of a run on a GPU: each row is in a CSV and a JSON-lines file as soon as it is known.

A short table at the end.

python -m bench.gpu_results note STAGE STATUS TEXT...   adds a row;   ... table   prints what is
there and ends with 1 on red
"""

import csv
import json
import os
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

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


def folder():
    return Path(os.environ.get("RESULTS") or Path(__file__).parent / "out" / "gpu")


class Results:
    """Appends rows to `<folder>/results.csv` and `.jsonl`, and says each as it comes. stamp: goes
    into each JSON line.
    """

    def __init__(self, where=None, **stamp):
        self.where, self.stamp, self.red = Path(where or folder()), stamp, False
        self.where.mkdir(parents=True, exist_ok=True)

    def add(self, *arguments, **keywords):
        row = Row(*arguments, **keywords)
        table = self.where / "results.csv"
        fresh = not table.exists()
        with table.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow([f.name for f in fields(Row)])
            writer.writerow(["" if value is None else value for value in asdict(row).values()])
        with (self.where / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({**asdict(row), **self.stamp}) + "\n")
        self.red = self.red or row.status == RED
        print(line(row), flush=True)


def read(where=None):
    path = Path(where or folder()) / "results.jsonl"
    known = {f.name for f in fields(Row)}
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Row(**{k: v for k, v in json.loads(text).items() if k in known}) for text in lines]


def this_run(where=None):
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
