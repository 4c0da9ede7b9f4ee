"""`sparse-ft delta compose`."""

from pathlib import Path
from typing import Annotated

import typer

from .. import options
from ..library import sparse_ft
from ..misuse import blamed_on, command
from ..showing import say, show_json
from . import files


@command
def compose(
    model: files.BASE,
    deltas: files.DELTAS,
    output: Annotated[Path, typer.Option(help="file or folder of the composed delta")],
    force: files.FORCE = False,
    as_json: options.JSON = False,
) -> None:
    """Make one delta of several, each on top of the others.

    Where two change the same entry, the later one's value stays.
    """
    sft = sparse_ft()
    found = [files.read(path) for path in deltas]
    base = files.load_base(model, found[0])
    plain = files.load_base(model, found[0])
    for path, delta in zip(deltas, found, strict=True):
        with blamed_on(f"DELTA {str(path)!r}"):
            sft.apply(base.model, delta, force=force)
    with blamed_on("delta compose"):
        composed = sft.diff(plain.model, base.model)
    recipe = {"compose": len(found), "of": [delta.recipe for delta in found]}
    saved = files.save(composed, output, recipe=recipe)
    told = {"entries": saved.entries, "tensors": len(saved), "delta": str(output)}
    show_json(told) if as_json else say(f"{saved.entries:,} entries, written to {output}")
