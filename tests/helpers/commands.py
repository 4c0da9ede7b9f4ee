"""Command lines of the pages, in this process where they are the package's own."""

import contextlib
import io
import runpy
import shlex
import sys
from unittest import mock


def run(line: str) -> None:
    """Run a command line; raises AssertionError where it fails."""
    program, *arguments = shlex.split(line)
    if program == "python" and arguments[0] == "-m":
        _module(arguments[1], arguments[2:])
    elif program == "sparse-ft":
        _sparse_ft(arguments)
    else:
        raise AssertionError(f"{line!r}: no command that the pages may have")


def told(line: str) -> str:
    """What a command line prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run(line)
    return printed.getvalue()


def _module(name: str, arguments: list[str]) -> None:
    with mock.patch.object(sys, "argv", [name, *arguments]):
        try:
            runpy.run_module(name, run_name="__main__")
        except SystemExit as end:
            assert not end.code, f"python -m {name} {arguments} ended with {end.code}"


def _sparse_ft(arguments: list[str]) -> None:
    from sparse_ft.cli.main import main

    code = main(arguments)
    assert not code, f"sparse-ft {arguments} ended with {code}"
