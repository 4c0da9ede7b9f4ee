"""CSV files: what spreadsheets and programs write, and what is wrong with it, with its line."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from .misuse import Misuse

DELIMITERS = (",", ";", "\t")
MOST = 2**31 - 1  # characters of a cell


def read_table(
    path: Path, file: TextIO, wanted: Sequence[str], key: str
) -> Iterator[dict[str, str]]:
    """{column: text} of each row below the first, which names the columns.

    wanted: columns that a reader needs; a .csv file may have semicolons or tabs between its
    columns, as spreadsheets write them, where its first line has these columns then. key: of the
    config, for messages. Raises Misuse where a row has more or fewer columns than the first, or
    quotes that do not end: a comma in a text that is not quoted would shift what comes after it.
    """
    csv.field_size_limit(MOST)
    first = file.readline()
    file.seek(0)
    is_tabs = path.suffix.lower() == ".tsv"
    between = "\t" if is_tabs else _delimiter(first, wanted)
    reader = csv.reader(file, delimiter=between, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        _check_names(names, wanted, path, key)
        for cells in reader:
            if not cells:
                continue
            while len(cells) > len(names) and not cells[-1].strip():
                cells.pop()  # commas at the end of a line
            if len(cells) != len(names):
                raise Misuse(
                    _odd(len(cells), names, f"line {reader.line_num} of {str(path)!r}", key)
                )
            yield dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise Misuse(
            f"{key}: line {reader.line_num} of {str(path)!r} is no line of a table: {error}; a text"
            ' with commas, quotes or line ends stands in "…", and a quote within it is ""'
        ) from None


def _delimiter(first: str, wanted: Sequence[str]) -> str:
    """What stands between the columns: the first that leaves the wanted ones in the first line."""
    for each in DELIMITERS:
        names = [name.strip() for name in next(csv.reader([first], delimiter=each), [])]
        if set(wanted) <= set(names):
            return each
    return DELIMITERS[0]


def _check_names(names: Sequence[str], wanted: Sequence[str], path: Path, key: str) -> None:
    for name in wanted:
        if names.count(name) > 1:
            raise Misuse(
                f"{key}: {names.count(name)} columns of {str(path)!r} are called {name!r}; leave"
                " one"
            )


def _odd(count: int, names: Sequence[str], at: str, key: str) -> str:
    return (
        f"{key}: {at} has {count} columns, and the first line names {len(names)}:"
        f' {", ".join(map(repr, names[:8]))}; a text with commas stands in "…"'
    )
