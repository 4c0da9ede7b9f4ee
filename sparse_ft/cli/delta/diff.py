"""`sparse-ft delta diff`."""

from pathlib import Path
from typing import Annotated

import typer

from .. import options
from ..library import sparse_ft
from ..misuse import Misuse, blamed_on, command
from ..models import load_as_it_is
from ..showing import say, show_json
from . import files


@command
def diff(
    base: files.BASE,
    trained: Annotated[
        Path, typer.Argument(metavar="TRAINED", help="folder of the fine-tuned model")
    ],
    output: Annotated[Path, typer.Option(help="file or folder of the delta")],
    origin: Annotated[
        bool, typer.Option("--origin", help="keep the base's values, for `delta remove`")
    ] = False,
    as_json: options.JSON = False,
) -> None:
    """Make the delta between two models, whoever trained them."""
    before = load_as_it_is(base, "MODEL")
    after = load_as_it_is(trained, "TRAINED")
    kind, other = type(before).__name__, type(after).__name__
    if kind != other:
        raise Misuse(
            f"MODEL: {str(base)!r} holds a {kind}, and TRAINED, {str(trained)!r}, a {other};"
            f" give two of one class: {other}.from_pretrained({str(base)!r}).save_pretrained(…)"
        )
    with blamed_on("MODEL or TRAINED"):
        found = sparse_ft().diff(before, after)
    files.save(found, output, origin=origin)
    told = {"entries": found.entries, "tensors": len(found), "delta": str(output)}
    show_json(told) if as_json else say(f"{found.entries:,} entries, written to {output}")
