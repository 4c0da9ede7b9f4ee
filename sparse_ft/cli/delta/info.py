"""`sparse-ft delta info`."""

from pathlib import Path
from typing import Any

from .. import options
from ..misuse import command
from ..showing import say, show_facts, show_json
from . import files


@command
def info(delta: files.DELTA, as_json: options.JSON = False) -> None:
    """Say what a delta changes, and what training reported."""
    found = files.read(delta)
    told = _told(found, delta)
    if as_json:
        show_json(told)
        return
    recipe = told.pop("recipe") or {}
    is_run = isinstance(recipe, dict)
    shown = ("task", "method", "settings", "learning_rate", "steps", "evaluated")
    ways = {key: recipe[key] for key in shown if recipe.get(key)} if is_run else {}
    show_facts(str(delta), {**told, **ways})
    say(f"\n{found.plan}")


def _told(delta: Any, path: Path) -> dict[str, Any]:
    file = path / "delta.safetensors" if path.is_dir() else path
    return {
        "base": delta.base_name,
        "tensors": len(delta),
        "entries": delta.entries,
        "bytes": file.stat().st_size,
        "knows_the_base": delta.has_origin,
        "recipe": delta.recipe,
    }
