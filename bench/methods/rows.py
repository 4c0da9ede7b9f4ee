"""The rows: one a run, appended to a csv file at once, read at any time."""

import csv
import dataclasses
import math
import os
from pathlib import Path

RUN, BYTES = "run", "bytes"


@dataclasses.dataclass(frozen=True)
class Row:
    """kind: RUN, a training, or BYTES, its memory.

    validation, test: accuracy, or perplexity. kept: of the second task, as a share of what the
    model did before. seconds_per_step: the median. Bytes: the optimiser's state, what a forward
    holds for its backward, the peak above the loaded model.
    """

    task: str
    setting: str  # budget, steps, batch and length: rows of other settings are of another table
    kind: str
    method: str
    lr: float
    seed: int
    validation: float = math.nan
    test: float = math.nan
    kept: float = math.nan
    trainable: int = 0
    seconds_per_step: float = math.nan
    choosing_seconds: float = math.nan
    wall_seconds: float = math.nan
    optimizer_bytes: int = 0
    saved_bytes: int = 0
    peak_bytes: int = 0
    failed: str = ""
    machine: str = ""

    @property
    def key(self):
        """What makes it this row and no other."""
        return self.task, self.setting, self.kind, self.method, f"{self.lr:.3g}", self.seed


NAMES = [field.name for field in dataclasses.fields(Row)]
TYPES = {field.name: field.type for field in dataclasses.fields(Row)}


def append(path, row):
    """Add a row to the file, which begins with its header; on the disk when this returns.

    What a cut command left of a line is ended first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, NAMES, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        elif not _ends_a_line(path):
            file.write("\n")
        writer.writerow(dataclasses.asdict(row))
        file.flush()
        os.fsync(file.fileno())


def _ends_a_line(path):
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read(path):
    """[Row] of the file, the last of each key; lines that were cut are left out."""
    path = Path(path)
    if not path.exists():
        return []
    found = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            row = _row(line)
            if row is not None:
                found[row.key] = row
    return list(found.values())


def _row(line):
    try:
        return Row(**{name: TYPES[name](line[name]) for name in NAMES})
    except (KeyError, TypeError, ValueError):
        return None
