"""Recipe: a published way to choose what trains, by its name."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from ..messages import did_you_mean
from ..plan import Plan
from .process import Process
from .rates import CAUSAL_LM, CLASSIFICATION, RATES
from .settings import check_common

Make = Callable[..., Any]
FOLLOWS = ("paper", "code", "both", "description")
RECIPES: dict[str, "Recipe"] = {}


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """A method: call it with a model and batches, and it says what trains.

        plan = sft.recipes.get("gps")(model, batches, density=0.005)
        sft.convert(model, plan)

    name: of the method. paper: where it was published. defaults: of its settings, as the paper has
    them. follows: "paper" or "code" where the two are known to differ, "both" where they are not,
    "description": there was no paper or code at hand, only what others write of the rule.
    decay_to: what its weight decay pulls towards, as `SelectiveAdamW` says it: "zero", or "origin"
    where the method trains a difference.
    """

    name: str
    paper: str
    make: Make
    defaults: Mapping[str, Any]
    follows: str
    decay_to: str
    settings: tuple[str, ...]  # what it can be told

    @property
    def says(self) -> str:
        """Its rule, in the first line of its page."""
        return (inspect.getdoc(self.make) or "").partition("\n")[0]

    def learning_rate(self, task: str = CLASSIFICATION) -> float | None:
        """AdamW's rate that did best on a small model of that task, None where none was tried.

        task: "text-classification" or "causal-lm". A start to look around from, not a promise:
        bench/results/methods.md has the rates that were tried and what each gave. Raises
        ValueError for another task.
        """
        if task not in RATES:
            raise ValueError(f"task: expected one of {', '.join(map(repr, RATES))}, got {task!r}")
        return RATES[task].get(self.name)

    @property
    def page(self) -> str:
        """All that is to be known of it, as text."""
        defaults = ", ".join(f"{key}={value!r}" for key, value in self.defaults.items())
        lines = [
            f"{self.name}: {self.paper}",
            "",
            inspect.getdoc(self.make) or "",
            "",
            f"defaults: {defaults or 'none'}",
            f"settings: {', '.join(self.settings)}",
            f"follows: {self.follows}; weight decay pulls towards {self.decay_to}",
            f"learning rate that did best: {_told(self.learning_rate())} for a small encoder,"
            f" {_told(self.learning_rate(CAUSAL_LM))} for a small decoder",
        ]
        return "\n".join(lines)

    def __call__(
        self,
        model: nn.Module,
        batches: Iterable[Any] | None = None,
        *,
        also: str | Iterable[str] | Mapping[str, Any] = (),
        **settings: Any,
    ) -> Any:
        """A `Plan`, or a `Process` where what trains changes on the way.

        batches, loss, targets, seed, density and the like: as in `sft.select`; they take the place
        of the defaults. also: globs of parameters that train whole beside it, such as a fresh head
        ("classifier.*"), or a mapping as `Plan.match` takes it. The model is left as it was, but
        where the page says otherwise. Raises TypeError for a setting that the method has not,
        ValueError where it cannot work on this model.
        """
        for name in settings:
            if name not in self.settings:
                raise TypeError(
                    f"{name}: {self.name!r} has no such setting{did_you_mean(name, self.settings)}"
                )
        asked = {**self.defaults, **settings}
        if settings.get("density") is not None and "budget" not in settings:
            asked = without_budget(asked)
        elif settings.get("budget") is not None and "density" not in settings:
            asked.pop("density", None)
        if _is_of_the_package(self.make):
            check_common(model, batches, asked)
            if "seed" in asked:
                asked["seed"] = int(asked["seed"])  # numpy's, which torch's generators refuse
        made = self.make(model, batches, **asked)
        more = also_plan(model, also)
        if isinstance(made, Process):
            made.add(self, more)
            return made
        return made | more if more else made

    def __repr__(self) -> str:
        return f"<recipe {self.name}: {self.says}>"


def _told(rate: float | None) -> str:
    return "not measured" if rate is None else f"{rate:g}"


def _is_of_the_package(make: Make) -> bool:
    """Whether a setting means here what it means everywhere; a recipe of one's own may differ."""
    return make.__module__.startswith(f"{__package__}.")


def without_budget(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings where a density was asked for in the place of the method's own budget.

    A budget that picks as many entries in each row becomes that share of each row.
    """
    settings = dict(settings)
    budget = settings.pop("budget", None)
    if hasattr(budget, "pick"):
        settings["structure"] = "entries_per_row"
    return settings


def also_plan(model: nn.Module, also: str | Iterable[str] | Mapping[str, Any]) -> Plan:
    """What trains beside the method's own choice."""
    if isinstance(also, str):
        also = [also]
    patterns = also if isinstance(also, Mapping) else dict.fromkeys(also, "all")
    return Plan.match(model, patterns) if patterns else Plan({})


def recipe(
    name: str,
    paper: str,
    defaults: Mapping[str, Any] | None = None,
    *,
    follows: str = "both",
    decay_to: str = "zero",
    settings: Iterable[str] = (),
) -> Callable[[Make], Recipe]:
    """Make a function `(model, batches, **settings) -> Plan | Process` the recipe `name`.

        @sft.recipes.recipe("mine", "nobody, 2026", {"density": 0.01})
        def mine(model, batches, *, density): ...

    The first line of the docstring is its rule. settings: names that it takes beside those of its
    own arguments. Raises ValueError for a name that is taken, or a `follows` that is none.
    """
    if follows not in FOLLOWS:
        raise ValueError(f"follows: expected {' or '.join(map(repr, FOLLOWS))}, got {follows!r}")
    if name in RECIPES:
        raise ValueError(f"name: there is a recipe {name!r} already: {RECIPES[name].paper}")

    def register(make: Make) -> Recipe:
        own = [
            each.name
            for each in list(inspect.signature(make).parameters.values())[2:]
            if each.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        known = tuple(dict.fromkeys([*own, *settings]))
        made = Recipe(name, paper, make, dict(defaults or {}), follows, decay_to, known)
        RECIPES[name] = made
        return made

    return register
