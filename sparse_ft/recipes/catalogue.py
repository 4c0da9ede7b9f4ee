"""The catalogue: recipes by name, and as a table."""

import builtins

from ..messages import did_you_mean
from ..texts import aligned
from .recipe import RECIPES, Recipe


class Catalogue(builtins.list):
    """A list of recipes; printed, a table."""

    def __str__(self) -> str:
        lines = [("name", "what trains", "paper")]
        lines += [(each.name, each.says, each.paper) for each in self]
        return "\n".join(aligned(lines))


def get(name: str) -> Recipe:
    """The recipe `name`. Raises ValueError for a name that is none."""
    if name not in RECIPES:
        raise ValueError(f"recipe: there is no {name!r}{did_you_mean(str(name), RECIPES)}")
    return RECIPES[name]


def every() -> Catalogue:
    """All recipes, by name."""
    return Catalogue(RECIPES[name] for name in sorted(RECIPES))
