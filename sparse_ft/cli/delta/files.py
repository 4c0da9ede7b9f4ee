"""Deltas and models that the subcommands read and write."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..library import sparse_ft
from ..locating import located
from ..misuse import Misuse, blamed_on
from ..models import Loaded, load, load_as_it_is
from ..writing import writing

DELTA = Annotated[Path, typer.Argument(metavar="DELTA", help="file of a delta, or its folder")]
DELTAS = Annotated[
    list[Path], typer.Argument(metavar="DELTA…", help="files of deltas, or their folders")
]
BASE = Annotated[Path, typer.Argument(metavar="MODEL", help="folder of the base model")]
MAYBE_BASE = Annotated[
    Path | None, typer.Option(help="folder of the base model, where a delta does not know it")
]
FORCE = Annotated[
    bool, typer.Option("--force", help="do not look whether the model is the delta's base")
]


def read(path: Path) -> Any:
    """The delta at `path`."""
    if not path.exists():
        raise Misuse(f"DELTA: there is no file or folder {str(path)!r}; check the path")
    with blamed_on("DELTA"):
        return sparse_ft().load_delta(str(path))


def task_of(delta: Any) -> dict[str, Any] | None:
    """What the run told that made it, or one of those that it was made of; None: nothing."""
    recipe = delta.recipe
    if not isinstance(recipe, dict):
        return None
    if "task" in recipe and "encoder" in recipe:
        return recipe
    for each in recipe.get("of") or ():
        found = task_of(_Told(each))
        if found is not None:
            return found
    return None


class _Told:
    """What holds a recipe."""

    def __init__(self, recipe: Any):
        self.recipe = recipe


def load_base(folder: Path, delta: Any, key: str = "MODEL") -> Loaded:
    """The model in `folder` as the run of `delta` loaded it: with its head, in its dtype."""
    told = task_of(delta)
    if told is None:
        return Loaded(load_as_it_is(folder, key), None, [])
    labels = told["encoder"]["labels"] or None
    return load(
        folder, told["task"], labels=labels, dtype=told["dtype"], seed=told["seed"], key=key
    )


def check_output(folder: Path, source: Path) -> None:
    """Raise Misuse for a file, which save_pretrained leaves without a word, and for `source`."""
    if folder.is_file():
        raise Misuse(f"--output: {str(folder)!r} is a file; give a folder")
    if folder.resolve() == located(source, "MODEL").resolve():
        raise Misuse(
            f"--output: {str(folder)!r} is the folder of MODEL, which would be written over; give"
            " another one"
        )


def save_model(loaded: Loaded, folder: Path) -> None:
    """Model and tokenizer as save_pretrained writes them."""
    with writing(folder, "--output"):
        loaded.model.save_pretrained(folder)
        if loaded.tokenizer is not None:
            loaded.tokenizer.save_pretrained(folder)


def save(delta: Any, path: Path, origin: bool = False, recipe: Any = None) -> Any:
    """Write a delta; a path without an ending is a folder, which is made."""
    with writing(path, "--output"), blamed_on(f"--output {str(path)!r}"):
        if not path.suffix:
            path.mkdir(parents=True, exist_ok=True)
        return sparse_ft().save_delta(delta, path, origin=origin, recipe=recipe)
