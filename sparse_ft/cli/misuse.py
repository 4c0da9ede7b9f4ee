"""What a user got wrong: one message with key, value and way out, and exit code 2."""

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import typer

from .showing import only_json, warn

BUG, MISUSE, INTERRUPTED, TERMINATED = 1, 2, 130, 143
# What the shell gets. Signals: 128 and their number.
EXITS = {
    0: "done",
    BUG: "a bug, with its traceback",
    MISUSE: "a wrong command line, config or file",
    INTERRUPTED: "Ctrl-C",
    TERMINATED: "SIGTERM",
}
EXTRA = ("pydantic", "yaml", "rich", "transformers", "accelerate", "safetensors")
_FAULTS = (
    ValueError,
    TypeError,
    LookupError,
    OSError,
    ImportError,
    RuntimeError,
    NotImplementedError,
)


class Misuse(Exception):
    """A wrong argument, file or config; the message says which, what it is, and what to do."""


class Interrupted(Exception):
    """A signal has ended a run; the message says how to go on. code: for the shell."""

    def __init__(self, message: str, code: int = INTERRUPTED):
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
def blamed_on(key: str) -> Iterator[None]:
    """What the library says of a wrong value, said of the key that it came from."""
    try:
        yield
    except _FAULTS as error:
        raise Misuse(f"{key}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The message of an error on one line; its class where it has none.

    A KeyError shows its message quoted; here it is as it was written.
    """
    is_key = isinstance(error, KeyError) and error.args
    text = str(error.args[0]) if is_key else str(error)
    return " ".join(text.split())[:600] or type(error).__name__


def command(function: Callable[..., Any]) -> Callable[..., None]:
    """A subcommand that ends with the exit code of what it met.

    Which is which: `EXITS`. Other errors keep their traceback: they are bugs.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        is_json = bool(kwargs.get("as_json"))
        try:
            with _warnings_told(), only_json() if is_json else contextlib.nullcontext():
                function(*args, **kwargs)
        except Misuse as error:
            _say(f"error: {error}")
            raise typer.Exit(MISUSE) from None
        except ModuleNotFoundError as error:
            if str(error.name).partition(".")[0] not in EXTRA:
                raise
            _say(f"error: {error.name} is not installed: pip install sparse_ft[cli]")
            raise typer.Exit(MISUSE) from None
        except Interrupted as error:
            _say(str(error))
            raise typer.Exit(error.code) from None
        except KeyboardInterrupt:
            _say("interrupted")
            raise typer.Exit(INTERRUPTED) from None

    return run


@contextlib.contextmanager
def _warnings_told() -> Iterator[None]:
    """In here a warning is a sentence; the line of the source that it came from helps nobody."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: warn(one_line(Warning(message)))
        yield


def _say(message: str) -> None:
    """Once, however many processes of one run have met it."""
    if os.environ.get("RANK", "0") == "0":
        print(f"sparse-ft: {message}", file=sys.stderr)
