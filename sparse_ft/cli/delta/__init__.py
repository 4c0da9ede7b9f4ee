"""`sparse-ft delta …`: what fine-tuning changed, in files."""

import typer

from .apply import apply
from .compose import compose
from .diff import diff
from .export import export
from .info import info
from .merge import merge
from .remove import remove

delta = typer.Typer(
    name="delta",
    help="Look at deltas, put them into models, mix and convert them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
for subcommand in (info, apply, remove, merge, diff, compose, export):
    delta.command()(subcommand)
