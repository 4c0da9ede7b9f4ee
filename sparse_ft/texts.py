"""Text for people: aligned tables, bytes with their unit, the name that was probably meant."""

import difflib
from collections.abc import Container, Iterable, Sequence


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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" where one of the `known` names is near `name`, else "; there are 'a',
    'b', 'c', …".
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    if not known:
        return "; there are none"
    return f"; there are {', '.join(map(repr, known[:3]))}{', …' if len(known) > 3 else ''}"
