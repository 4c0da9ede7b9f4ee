"""`sparse-ft estimate SOURCE`."""

import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from . import options
from .library import needed, sparse_ft, transformers
from .misuse import Misuse, command, one_line
from .showing import say, show_json

FIELDS = ("weights", "values", "indices", "gradients", "optimizer_state", "activations", "peak")
STRUCTURES = ("columns", "rows", "blocks", "entries", "entries_per_row", "tensors")
OPTIMIZERS = ("adamw", "sgd")


@command
def estimate(
    source: Annotated[
        Path, typer.Argument(metavar="MODEL", help="model folder, or its config.json")
    ],
    batch: Annotated[int, options.number_option(options.whole(1), "rows of a batch")] = 1,
    sequence: Annotated[int, options.number_option(options.whole(1), "tokens of a row")] = 512,
    density: Annotated[
        float, options.number_option(options.share, "share of each linear weight that trains")
    ] = 0.01,
    structure: Annotated[str, typer.Option(help="what is selected")] = "columns",
    lora: Annotated[
        int, options.number_option(options.whole(), "rank of LoRA; 0: leave it out")
    ] = 8,
    lean: Annotated[bool, typer.Option("--lean", help="the selection also with lean")] = False,
    padded: Annotated[bool, typer.Option("--padded", help="with an attention mask")] = False,
    optimizer: Annotated[str, typer.Option(help="adamw or sgd")] = "adamw",
    dtype: Annotated[str | None, typer.Option(help="of the weights; default: the config's")] = None,
    as_json: options.JSON = False,
) -> None:
    """Say what a training step takes: full, LoRA, a selection.

    Side by side. Reads the config only, no weights. Of a run of your own: sparse-ft finetune
    --dry-run
    """
    from .config import DTYPES

    _expect("--structure", structure, STRUCTURES)
    _expect("--optimizer", optimizer, OPTIMIZERS)
    if dtype is not None:
        _expect("--dtype", dtype, DTYPES)
    wanted: dict[str, tuple[Any, bool]] = {"full": (None, False)}
    if lora:
        needed("peft", "peft", "--lora (0 leaves it out)")
        wanted[f"LoRA r{lora}"] = {"lora": lora}, False
    chosen = {"structure": structure, "density": density}
    ours = f"{density:.3g} {structure}"
    wanted[ours] = chosen, False
    if lean:
        wanted[f"{ours}, lean"] = chosen, True
    found = _estimates(source, wanted, batch, sequence, padded, optimizer, dtype)
    if as_json:
        show_json(
            {label: {name: getattr(e, name) for name in FIELDS} for label, e in found.items()}
        )
        return
    head = f"a training step, batch {batch} × {sequence}, {optimizer}"
    say(f"{head}\n{sparse_ft().memory.side_by_side(found)}")


def _expect(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise Misuse(f"{option}: expected {' or '.join(map(repr, known))}, got {value!r}")


class _Complaint:
    """Says what is wrong with a config in the way of this command."""

    def error(self, message: str) -> NoReturn:
        raise Misuse(message.replace("CONFIG.json", "MODEL"))


def _estimates(
    source: Path,
    wanted: dict[str, tuple[Any, bool]],
    batch: int,
    sequence: int,
    padded: bool,
    optimizer: str,
    dtype: str | None,
) -> dict[str, Any]:
    """{label: Estimate}."""
    transformers()
    sft = sparse_ft()
    import torch

    from ..module_command import read_config

    config = read_config(str(source), _Complaint())
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for label, (plan, is_lean) in wanted.items():
            try:
                found[label] = sft.estimate(
                    config,
                    plan,
                    batch,
                    sequence,
                    lean=is_lean,
                    padded=padded,
                    optimizer=optimizer,
                    dtype=None if dtype is None else getattr(torch, dtype),
                )
            except Exception as error:  # whatever a config makes its model's class say
                raise Misuse(
                    f"MODEL: {str(source)!r} gives no model to train: {one_line(error)}"
                ) from error
    return found
