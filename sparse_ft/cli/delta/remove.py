"""`sparse-ft delta remove`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import options
from ..library import sparse_ft
from ..misuse import Misuse, blamed_on, command
from ..models import Loaded, load_as_it_is
from ..showing import say, show_json
from . import files


@command
def remove(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="folder of the fine-tuned model")],
    delta: files.DELTA,
    output: Annotated[Path, typer.Option(help="folder that gets the base")],
    force: files.FORCE = False,
    as_json: options.JSON = False,
) -> None:
    """Take a delta out of a model: the base, bit for bit.

    The delta must know what the base held (`keep_origin: true`, or `sparse-ft delta diff`), and the
    model must hold what the delta put in.
    """
    files.check_output(output, model)
    found = files.read(delta)
    if not found.has_origin:
        raise Misuse(
            f"DELTA: {str(delta)!r} does not know what the base held; train with"
            " `keep_origin: true`, or keep the base's own folder"
        )
    loaded = Loaded(load_as_it_is(model, "MODEL"), _tokenizer_of(model), [])
    with blamed_on("MODEL or DELTA"):
        sparse_ft().apply(loaded.model, _backwards(found), force=force)
    files.save_model(loaded, output)
    told = {"entries": found.entries, "model": str(output)}
    show_json(told) if as_json else say(f"the base is in {output}")


def _backwards(delta: Any) -> Any:
    """The delta from the fine-tuned model to its base."""
    parts = {
        name: dataclasses.replace(part, values=part.known_origin, origin=part.values)
        for name, part in delta.items()
        if part.origin is not None
    }
    return delta.with_parts(parts)


def _tokenizer_of(folder: Path) -> Any:
    """That of the folder; None where it has none."""
    from ..library import transformers

    try:
        return transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception:  # a model goes without one
        return None
