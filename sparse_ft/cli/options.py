"""The flags that several commands share, and how their numbers are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer


def whole(least: int = 0) -> Callable[[Any], int]:
    """Reads a whole number that is at least `least`."""

    def whole_number(text: Any) -> int:
        try:
            number = int(str(text))
        except ValueError:
            number = least - 1
        if number < least:
            raise typer.BadParameter(f"expected a whole number, {least} or more, got {text!r}")
        return number

    return whole_number


def number(text: Any) -> float:
    """Reads a number."""
    try:
        return float(str(text))
    except ValueError:
        raise typer.BadParameter(f"expected a number, got {text!r}") from None


def share(text: Any) -> float:
    """Reads a number in (0, 1]."""
    found = number(text)
    if not 0 < found <= 1:
        raise typer.BadParameter(f"expected a share in (0, 1], got {text!r}")
    return found


def number_option(read: Callable[[Any], Any], help: str, *names: str) -> Any:
    """An option that holds a number."""
    is_whole = read not in (number, share)
    return typer.Option(*names, parser=read, metavar="N" if is_whole else "X", help=help)


CONFIG = Annotated[
    Path | None,
    typer.Argument(metavar="[CONFIG.yaml]", help="a config file, or the folder of a run"),
]
MODEL = Annotated[Path | None, typer.Option(help="folder with a model and its tokenizer")]
TRAIN = Annotated[Path | None, typer.Option(help="training rows: .csv, .tsv, .jsonl, .txt")]
VALIDATION = Annotated[str | None, typer.Option(help="a share to hold out, or a file")]
TEXT = Annotated[str | None, typer.Option(help="column of the text")]
LABEL = Annotated[str | None, typer.Option(help="column of the class")]
TASK = Annotated[str | None, typer.Option(help="text-classification or causal-lm")]
METHOD = Annotated[str | None, typer.Option(help="select, full, lora, or a recipe")]
DENSITY = Annotated[float | None, number_option(share, "share that trains, in (0, 1]")]
STRUCTURE = Annotated[str | None, typer.Option(help="columns, rows, blocks, entries, …")]
LEAN = Annotated[
    bool | None, typer.Option("--lean/--no-lean", help="keep less for what does not train")
]
STEPS = Annotated[int | None, number_option(whole(1), "steps of the optimiser")]
EPOCHS = Annotated[float | None, number_option(number, "passes over the rows")]
BATCH_SIZE = Annotated[int | None, number_option(whole(1), "rows of a step")]
LEARNING_RATE = Annotated[
    float | None,
    number_option(number, "that of the recipe; 1e-3; 1e-4 for full", "--learning-rate", "--lr"),
]
SEED = Annotated[int | None, number_option(whole(), "of head, order, choice and dropout")]
OUTPUT = Annotated[Path | None, typer.Option(help="folder of the run")]
SET = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="any key of the config, such as training.clip"),
]
JSON = Annotated[bool, typer.Option("--json", help="one JSON document on stdout")]


def flags(**given: Any) -> dict[str, Any]:
    """{dotted key of the config: value} of the flags that were given."""
    keys = {
        "model": "model",
        "task": "task",
        "train": "data.train",
        "validation": "data.validation",
        "text": "data.text",
        "label": "data.label",
        "method": "method",
        "density": "settings.density",
        "structure": "settings.structure",
        "lean": "lean",
        "steps": "training.steps",
        "epochs": "training.epochs",
        "batch_size": "training.batch_size",
        "learning_rate": "training.learning_rate",
        "seed": "training.seed",
        "output": "output",
    }
    if given.get("validation") is not None:
        given["validation"] = _share_or_path(given["validation"])
    return {
        keys[name]: str(value) if isinstance(value, Path) else value
        for name, value in given.items()
        if value is not None
    }


def _share_or_path(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
