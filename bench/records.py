"""What was measured, as rows; a csv file a machine, in which a new run of an op replaces its old
rows.
"""

import csv
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class Record:
    """One provider in one case. ratio: its time over ours, the median over paired rounds (more than
    1: ours is faster).
    """

    op: str
    case: str
    provider: str
    threads: int
    kind: str = ""
    density: float = 0.0
    dtype: str = ""
    unit: str = "ms"
    p20: float | None = None
    p50: float | None = None
    p80: float | None = None
    rounds: int = 0
    ratio: float | None = None
    bound: float | None = None  # the roofline of the case in the same unit, where there is one
    note: str = ""
    disturbed: int = 0  # rounds in which a thread lost its core to another process


@dataclass(frozen=True)
class Must:
    """One line of what the library promises. at_least: the measured ratio must reach the target,
    else stay under it.

    key: what the promise is known by within its op, whatever `line` calls it for people.
    unmeasured: why this machine cannot judge the line, which then neither passes nor falls short.
    """

    op: str
    key: str
    line: str
    threads: int
    measured: float | None
    target: float
    at_least: bool = True
    note: str = ""
    unmeasured: str = ""

    @property
    def met(self):
        if self.measured is None:
            return False
        return self.measured >= self.target if self.at_least else self.measured <= self.target

    @property
    def verdict(self):
        return "not measured" if self.unmeasured else "pass" if self.met else "FALLS SHORT"

    def __str__(self):
        shown = "-" if self.measured is None else f"{self.measured:.3g}"
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        why = "; ".join(filter(None, (self.unmeasured, self.note)))
        note = f"  [{why}]" if why else ""
        return (
            f"{self.verdict:12s}  {shown:>7s} {'>=' if self.at_least else '<='} {self.target:<6g}"
            f" {threads}: {self.line}{note}"
        )


def tally(musts):
    """One line: how many promises of a run pass, and how many the machine cannot judge."""
    judged = [m for m in musts if not m.unmeasured]
    line = f"{sum(m.met for m in judged)} of {len(judged)} pass"
    return line + (
        f", {len(musts) - len(judged)} not measured here" if len(judged) < len(musts) else ""
    )


def write(path, rows, kind, stamp):
    """Write rows of one dataclass; rows of the same ops in the file are replaced. stamp: {column:
    value} on each new row.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = {row.op for row in rows}
    kept = [(row, mark) for row, mark in _read(path, kind) if row.op not in new]
    columns = [*(f.name for f in fields(kind)), *stamp]
    whole = path.with_name(f"{path.name}.new")  # an interrupted run leaves the old rows
    with whole.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for row, mark in [*kept, *((row, stamp) for row in rows)]:
            writer.writerow({**{k: _text(v) for k, v in asdict(row).items()}, **mark})
    whole.replace(path)


def read(path, kind):
    """The rows of a csv file, as `kind`; none where there is no file."""
    return [row for row, _ in _read(path, kind)]


def stamps(path, kind):
    """{op: the stamp of its rows}."""
    return {row.op: mark for row, mark in _read(path, kind)}


def _read(path, kind):
    if not path.exists():
        return []
    types = {f.name: f.type for f in fields(kind)}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        (
            kind(**{k: _value(v, types[k]) for k, v in row.items() if k in types}),
            {k: v for k, v in row.items() if k not in types},
        )
        for row in rows
    ]


def _text(value):
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def _value(text, kind):
    kind = str(kind)
    if "bool" in kind:
        return text == "True"
    if "int" in kind:
        return int(text)
    if "float" in kind:
        return float(text) if text else (None if "None" in kind else 0.0)
    return text
