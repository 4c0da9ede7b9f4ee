"""`sparse-ft recipes [NAME]`."""

from typing import Annotated

import typer

from ..texts import did_you_mean
from . import options
from .library import sparse_ft
from .misuse import Misuse, command
from .showing import say, show_json, show_table


@command
def recipes(
    name: Annotated[str | None, typer.Argument(help="of a recipe: its page")] = None,
    as_json: options.JSON = False,
) -> None:
    """List the published methods, or show the page of one."""
    every = {recipe.name: recipe for recipe in sparse_ft().recipes.list()}
    if name is not None and name not in every:
        raise Misuse(f"NAME: there is no recipe {name!r}{did_you_mean(name, every)}")
    shown = every if name is None else {name: every[name]}
    if as_json:
        show_json([_told(recipe) for recipe in shown.values()])
    elif name is None:
        rows = [(each.name, each.says, each.paper) for each in every.values()]
        show_table("recipes", ("name", "what trains", "paper"), rows)
    else:
        say(every[name].page)


def _told(recipe: object) -> dict[str, object]:
    shown = ("name", "says", "paper", "follows", "decay_to", "settings")
    told = {key: getattr(recipe, key) for key in shown}
    defaults = recipe.defaults  # type: ignore[attr-defined]
    return {
        **told,
        "defaults": {key: str(value) for key, value in defaults.items()},
        "learning_rate": recipe.learning_rate(),  # type: ignore[attr-defined]
    }
