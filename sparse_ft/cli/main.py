"""The command `sparse-ft` and its subcommands."""

import sys
from collections.abc import Sequence

import typer

from .bench import bench
from .delta import delta
from .doctor import doctor
from .estimate import estimate
from .finetune import finetune
from .misuse import BUG, EXITS, INTERRUPTED
from .recipes import recipes
from .select import select

app = typer.Typer(
    name="sparse-ft",
    help="Fine-tune a chosen part of a network at the cost of that part.",
    epilog="Exit codes: " + "; ".join(f"{code} {when}" for code, when in EXITS.items()) + ".",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for subcommand in (finetune, select, estimate, bench, recipes, doctor):
    app.command()(subcommand)
app.add_typer(delta)


@app.callback()
def options() -> None:
    """Fine-tune a chosen part of a network at the cost of that part."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit code, one of `EXITS`."""
    try:
        app(None if arguments is None else list(arguments), prog_name="sparse-ft")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else BUG * (end.code is not None)
    except KeyboardInterrupt:
        print("sparse-ft: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0
