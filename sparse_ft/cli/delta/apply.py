"""`sparse-ft delta apply`."""

import types
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import options
from ..library import sparse_ft
from ..misuse import Misuse, blamed_on, command
from ..showing import say, show_json
from . import files


@command
def apply(
    model: files.BASE,
    delta: files.DELTA,
    output: Annotated[
        Path | None, typer.Option(help="folder that gets the fine-tuned model")
    ] = None,
    evaluate: Annotated[
        Path | None, typer.Option(help="rows to judge it by, such as RUN/validation.jsonl")
    ] = None,
    alpha: Annotated[
        float, options.number_option(options.number, "0: the base, 1: the fine-tuned model")
    ] = 1.0,
    force: files.FORCE = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="evaluate on the CPU")] = False,
    as_json: options.JSON = False,
) -> None:
    """Put a delta into its base: the fine-tuned model, bit for bit. Save it, evaluate it, or both.

    The base is looked at, and another one is refused.
    """
    if output is None and evaluate is None:
        raise Misuse(
            "--output: it is missing; give --output FOLDER for the model, --evaluate FILE to judge"
            " it, or both"
        )
    if output is not None:
        files.check_output(output, model)
    found = files.read(delta)
    told = files.task_of(found)
    if evaluate is not None and told is None:
        raise Misuse(
            f"--evaluate: {str(delta)!r} does not say what its task was; `sparse-ft finetune`"
            " writes deltas that do"
        )
    rows = None if told is None or evaluate is None else _rows(evaluate, told)
    base = files.load_base(model, found)
    with blamed_on("MODEL or DELTA"):
        sparse_ft().apply(base.model, found, alpha=alpha, force=force)
    results: dict[str, Any] = {"entries": found.entries}
    if rows is not None and told is not None:
        results |= _judged(base, told, rows, cpu, str(delta))
    if output is not None:
        files.save_model(base, output)
        results["model"] = str(output)
    if as_json:
        show_json(results)
        return
    for name, value in results.items():
        say(f"{name.replace('_', ' ')}: {value}")


def _rows(path: Path, told: dict[str, Any]) -> list[dict[str, str]]:
    from ..data import columns_of, read_file

    names = types.SimpleNamespace(**{"messages": None, **told["encoder"]})
    columns = columns_of(told["task"], names)
    return read_file(path, columns, "--evaluate")


def _judged(
    base: Any, told: dict[str, Any], rows: list[dict[str, str]], cpu: bool, where: str
) -> dict[str, Any]:
    """What the model does on the rows, and what training reported."""
    from ..trainer import evaluate
    from ..training import encoder_of

    encoder = encoder_of(told, base.tokenizer, where)
    examples = encoder.encode(rows, "--evaluate")
    found = evaluate(base.model, encoder, examples, told["batch_size"], cpu)
    return {**found, "training_reported": told.get("evaluated")}
