"""Ledger: bytes that autograd holds, as rows, as a printed table and as a chart."""

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

from ..texts import aligned, readable


class Row(NamedTuple):
    """What one module saved on one device. tensors: unique storages; bytes: their whole size."""

    module: str
    kind: str
    device: str
    tensors: int
    bytes: int


class Ledger:
    """What `ledger` saw: `.rows`, `.total` (bytes), `.tokens` (None if unknown), `.devices`
    {device: bytes}; prints.
    """

    def __init__(self, rows: Iterable[Row], tokens: int | None = None) -> None:
        self.rows, self.tokens = tuple(rows), tokens
        self.total = sum(row.bytes for row in self.rows)
        self.devices: dict[str, int] = {}
        for row in self.rows:
            self.devices[row.device] = self.devices.get(row.device, 0) + row.bytes

    @property
    def groups(self) -> list[tuple[Row, int]]:
        """Rows of modules that differ in their first number only, summed: "layers.*.mlp".

        [(Row, number of modules)].
        """
        sums: dict[tuple[str, str, str], list[Row]] = {}
        for row in self.rows:
            pattern = re.sub(r"(?<![^.])\d+(?=\.)", "*", row.module, count=1)
            sums.setdefault((pattern, row.kind, row.device), []).append(row)
        return [
            (Row(*key, sum(row.tensors for row in rows), sum(row.bytes for row in rows)), len(rows))
            for key, rows in sums.items()
        ]

    def __str__(self) -> str:
        lines = [("module", "kind", "modules", "tensors", "bytes", "share", "device")]
        for row, number in self.groups:
            share = f"{row.bytes / self.total:.1%}" if self.total else ""
            numbers = f"{number}", f"{row.tensors}", readable(row.bytes), share
            lines.append((row.module or "(model)", row.kind, *numbers, row.device))
        per_token = f", {self.total / self.tokens:,.0f} bytes a token" if self.tokens else ""
        where = ", ".join(f"{readable(size)} on {device}" for device, size in self.devices.items())
        held = f"held for backward: {where or '0 B'}{per_token}"
        return "\n".join([*aligned(lines, numbers=(2, 3, 4, 5)), held])

    __repr__ = __str__

    def plot(self, path: str | os.PathLike) -> None:
        """Write a chart of the groups, largest first, to `path`. Needs matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError("plot: needs matplotlib; pip install matplotlib") from None
        rows = sorted(self.groups, key=lambda group: group[0].bytes)
        figure = Figure(figsize=(8, 1 + 0.28 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        axes.barh(
            [_label(row, number) for row, number in rows], [row.bytes / 2**20 for row, _ in rows]
        )
        axes.set_xlabel("MiB held for backward")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path)


def _label(row: Row, number: int) -> str:
    times = f" ×{number}" if number > 1 else ""
    return f"{row.module or '(model)'} {row.kind}{times}"
