"""`sparse-ft delta merge`."""

from pathlib import Path
from typing import Annotated

import typer

from .. import options
from ..library import sparse_ft
from ..misuse import blamed_on, command
from ..showing import say, show_json
from . import files


@command
def merge(
    deltas: files.DELTAS,
    output: Annotated[Path, typer.Option(help="file or folder of the merged delta")],
    rule: Annotated[
        str | None, typer.Option(help="of entries that several change: sum, mean, ties, dare, …")
    ] = None,
    weight: Annotated[
        list[float] | None,
        options.number_option(options.number, "of a delta; once each, in their order"),
    ] = None,
    density: Annotated[
        float, options.number_option(options.share, "share that ties and dare keep")
    ] = 1.0,
    seed: Annotated[int, options.number_option(options.whole(), "of what dare drops")] = 0,
    base: files.MAYBE_BASE = None,
    as_json: options.JSON = False,
) -> None:
    """Make one delta of several of one base.

    Those that change different entries add up exactly; for the others say --rule, and --base where
    they do not know what the base held.
    """
    found = [files.read(path) for path in deltas]
    known = None if base is None else files.load_base(base, found[0], "--base").model
    with blamed_on("delta merge"):
        merged = sparse_ft().merge(
            found, rule, weights=weight or None, density=density, seed=seed, base=known
        )
    saved = files.save(merged, output, origin=merged.has_origin)
    told = {"entries": saved.entries, "tensors": len(saved), "delta": str(output)}
    show_json(told) if as_json else say(f"{saved.entries:,} entries, written to {output}")
