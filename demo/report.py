"""The table: as Markdown for people, as csv for programs, every figure with its unit."""

import csv

from bench.table import markdown

MIB = 2**20


def _choosing(row):
    return f"{row['choosing_seconds']:.1f}, {row['choosing_peak_bytes'] / MIB:.0f}"


COLUMNS = [  # (heading, cell of a row)
    ("method", lambda row: row["label"]),
    ("accuracy %", lambda row: f"{100 * row['accuracy']:.1f}"),
    ("trainable", lambda row: f"{row['trainable']:,}"),
    ("% of model", lambda row: f"{100 * row['trainable'] / row['total']:.2f}"),
    ("optimiser MiB", lambda row: f"{row['optimizer_bytes'] / MIB:.2f}"),
    ("kept for backward MiB", lambda row: f"{row['saved_bytes'] / MIB:.1f}"),
    ("peak above model MiB", lambda row: f"{row['peak_bytes'] / MIB:.0f}"),
    ("s / step", lambda row: f"{row['seconds_per_step']:.3f}"),
    ("choosing s, MiB", lambda row: _choosing(row) if row["kind"] == "ours" else "-"),
]

LEGEND = """\
- ours, structure, share: the share of the body's linear weights that trains, the highest
  gradients of a few batches; of SHiRA entries drawn at random, decayed towards where they began
- lean: with `sft.convert(model, plan, lean=True)`, which keeps for backward only what backward
  needs
- accuracy: share of {tested:,} held-out examples named rightly, one seed; standard error about
  {error:.1f} points
- trainable: parameters that receive gradients; the head for the {classes} classes trains in full
  in every row
- optimiser: the tensors of the optimiser's state
- kept for backward: unique storages that one forward of the longest batch saves, parameters
  excluded
- peak above model: highest resident set of a process of its own during training steps on the
  longest batch, minus its resident set after loading the model and a first forward; its allocator
  returns freed blocks to the system at once
- s / step: median over {steps} steps of forward, backward, clipping and optimiser step
- choosing: time and peak above model of ranking the gradients of {batches} batches, once
  before training; a draw needs no batch"""


def table(rows):
    """Aligned Markdown lines, the first column to the left and figures to the right."""
    headings, cells = zip(*COLUMNS)
    return markdown(headings, [[cell(row) for cell in cells] for row in rows])


def legend(task, rows, score_batches):
    """What each column means, with this run's numbers."""
    tested, share = len(task.test), max(row["accuracy"] for row in rows)
    return LEGEND.format(
        tested=tested,
        error=100 * (max(share * (1 - share), 0.25 / tested) / tested) ** 0.5,
        classes=len(task.classes),
        steps=rows[0]["steps"],
        batches=score_batches,
    )


def write(folder, title, rows, notes):
    """demo.md and demo.csv under folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    markdown, values = folder / "demo.md", folder / "demo.csv"
    markdown.write_text(f"# {title}\n\n{table(rows)}\n\n{notes}\n", encoding="utf-8")
    with values.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return [markdown, values]
