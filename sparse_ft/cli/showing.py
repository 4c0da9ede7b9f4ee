"""What a command prints: text or a table for people, one JSON document for programs."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

_documents: list[TextIO] = []  # where JSON goes while all else goes to stderr


def is_first() -> bool:
    """Whether this is the one process of a run that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def show_json(document: Any) -> None:
    """One document on stdout."""
    if is_first():
        stream = _documents[-1] if _documents else sys.stdout
        print(json.dumps(document, indent=2, default=str), file=stream)


@contextlib.contextmanager
def only_json() -> Iterator[None]:
    """In here stdout gets what `show_json` shows; what libraries print besides goes to stderr."""
    _documents.append(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _documents.pop()


def say(text: str) -> None:
    """A line for people."""
    if is_first():
        print(text, flush=True)


def warn(text: str) -> None:
    """A line for people that does not stand among the results."""
    if is_first():
        print(f"sparse-ft: warning: {text}", file=sys.stderr, flush=True)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; plain, and as wide as it is, where nobody looks on."""
    if not is_first():
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        from ..texts import aligned

        print("\n".join([title, *aligned([columns, *rows])]))
        return
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def show_facts(title: str, facts: Mapping[str, Any]) -> None:
    """A table of two columns."""
    rows = [(name, str(value)) for name, value in facts.items() if value is not None]
    show_table(title, ("", ""), rows)
