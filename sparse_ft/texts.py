"""Figures as text for people: aligned tables, and bytes with their unit."""

from collections.abc import Container, Sequence


def readable(size: int) -> str:
    """Bytes as text: "1.50 GiB"."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(size) >= scale:
            return f"{size / scale:,.2f} {unit}"
    return f"{size:,} B"


def aligned(lines: Sequence[Sequence[str]], numbers: Container[int] = ()) -> list[str]:
    """Lines of cells as lines of text; the columns in `numbers` to the right."""
    widths = [max(map(len, column)) for column in zip(*lines)]

    def text(line: Sequence[str]) -> str:
        cells = []
        for number, (cell, width) in enumerate(zip(line, widths)):
            cells.append(cell.rjust(width) if number in numbers else cell.ljust(width))
        return "  ".join(cells).rstrip()

    return [text(line) for line in lines]
