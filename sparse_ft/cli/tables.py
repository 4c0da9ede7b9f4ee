"""CSV files: what spreadsheets and programs write, and what is wrong with it, with its line."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ..texts import did_you_mean
from .misuse import Misuse

DELIMITERS = (",", ";", "\t", "|")
MOST = 2**31 - 1  # characters of a cell


def read_table(
    path: Path, file: TextIO, columns: Mapping[str, str], key: str
) -> Iterator[dict[str, str]]:
    """{column: text} of each row below the first, which names the columns.

    columns: {key of the config: column} that a reader needs; a .csv file may have semicolons, tabs
    or bars between its columns where its first line has these then. key: of the config that names
    the file. Raises Misuse for a column that is not there, or twice, for a row with more or fewer
    columns than the first (a comma in a text that is not quoted would shift what comes after it),
    and for quotes that do not end.
    """
    csv.field_size_limit(MOST)
    first = file.readline()
    file.seek(0)
    is_tabs = path.suffix.lower() == ".tsv"
    between = "\t" if is_tabs else _delimiter(first, columns.values())
    reader = csv.reader(file, delimiter=between, strict=True)
    begin = 1  # line of the row that is read
    try:
        names = [name.strip() for name in next(reader, [])]
        if not names:
            return
        _check_names(names, columns, path)
        begin = reader.line_num + 1
        for cells in reader:
            while len(cells) > len(names) and not cells[-1].strip():
                cells.pop()  # commas at the end of a line
            if cells and len(cells) != len(names):
                raise Misuse(_odd(len(cells), names, f"line {begin} of {str(path)!r}", key))
            begin = reader.line_num + 1
            if cells:
                yield dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise Misuse(
            f"{key}: what begins in line {begin} of {str(path)!r} is no row of a table: {error};"
            ' a text with commas, quotes or line ends stands in "…", and a quote within it is ""'
        ) from None


def _delimiter(first: str, wanted: Iterable[str]) -> str:
    """What stands between the columns: the first that leaves the wanted ones in the first line."""
    needed = set(wanted)
    for each in DELIMITERS:
        names = {name.strip() for name in next(csv.reader([first], delimiter=each), [])}
        if needed <= names:
            return each
    return DELIMITERS[0]


def _check_names(names: Sequence[str], columns: Mapping[str, str], path: Path) -> None:
    for key, column in columns.items():
        if column not in names:
            raise absent(key, column, names, f"the first line of {str(path)!r}, which names them")
        if names.count(column) > 1:
            raise Misuse(
                f"{key}: {names.count(column)} columns of {str(path)!r} are called {column!r};"
                " leave one"
            )


def absent(key: str, column: str, known: Iterable[Any], at: str) -> Misuse:
    """That there is no such column; known: those that are there."""
    name = key.partition(".")[2]
    flag = f", or --{name} NAME" if name in ("text", "label") else ""
    near = did_you_mean(column, [each for each in known if isinstance(each, str)])
    return Misuse(
        f"{key}: there is no column {column!r} in {at}{near}; say `{name}: NAME` under"
        f" `data:`{flag}"
    )


def _odd(count: int, names: Sequence[str], at: str, key: str) -> str:
    return (
        f"{key}: {at} has {count} column{'s' if count > 1 else ''}, and the first line names"
        f' {len(names)}: {", ".join(map(repr, names[:8]))}; a text with commas stands in "…"'
    )
