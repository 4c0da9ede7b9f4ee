"""`sparse-ft delta export`."""

from pathlib import Path
from typing import Annotated

import typer

from .. import options
from ..library import sparse_ft
from ..misuse import Misuse, blamed_on, command
from ..showing import say, show_json
from . import files

FORMATS = ("lora", "shira")


@command
def export(
    delta: files.DELTA,
    output: Annotated[Path, typer.Option(help="folder that gets the adapter")],
    kind: Annotated[
        str, typer.Option("--format", help="lora (rows and columns) or shira (entries, too)")
    ] = "lora",
    base: files.MAYBE_BASE = None,
    as_json: options.JSON = False,
) -> None:
    """Write a delta as an adapter that PEFT, vLLM and others load."""
    if kind not in FORMATS:
        raise Misuse(f"--format: expected {' or '.join(map(repr, FORMATS))}, got {kind!r}")
    found = files.read(delta)
    known = None if base is None else files.load_base(base, found, "--base").model
    sft = sparse_ft()
    write = {"lora": sft.export_lora, "shira": sft.export_shira}[kind]
    with blamed_on("DELTA (--base MODEL says what the base held)"):
        write(found, output, known)
    told = {"format": kind, "adapter": str(output)}
    show_json(told) if as_json else say(f"a {kind} adapter is in {output}")
