"""Recipes: published methods by name. Each says what trains, or goes along with the training.

plan = sft.recipes.get("gps")(model, batches, density=0.005)
sft.convert(model, plan)

lift = sft.recipes.get("lift")(model, density=0.05)  # one that chooses anew on the way
optimizer = lift.start(model, lr=1e-4)  # and `lift.step()` after `optimizer.step()`

`print(sft.recipes.list())` names them, `print(sft.recipes.get("lift").page)` tells one, and
`python -m sparse_ft recipes` does both. `sft.recipes.gps` is `sft.recipes.get("gps")`.
"""

from typing import Any

from . import pages, presets, whole
from .catalogue import Catalogue, get
from .catalogue import every as list
from .pages.grafting import put_back
from .process import Process
from .recipe import RECIPES, Recipe, recipe

__all__ = ["Catalogue", "Process", "Recipe", "get", "list", "put_back", "recipe"]
_PAGES = (pages, presets, whole)  # imported for the recipes they hold


def __getattr__(name: str) -> Any:
    if name in RECIPES:
        return RECIPES[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
