"""SelectiveConfig: what trains, in PEFT's words."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from peft.config import PeftConfig
from torch import nn

from ..plan import ALL, Plan
from ..recipes import get
from .registration import SELECTIVE

# What lives with the process that trains; `adapter_config.json` does not have it.
_IN_MEMORY = ("plan", "recipe", "batches", "loss", "choice")
DENSITY = 0.01
_NAMED = ("density", "structure", "score", "block_size", "seed", "batches", "loss")


@dataclass
class SelectiveConfig(PeftConfig):
    """Which entries of which linear layers train, for `peft.get_peft_model`.

    Either of three ways says what is chosen:
    plan: a `sparse_ft.Plan` of weights of linear layers, as `sparse_ft.select` or a hand made it.
    recipe: the name of one of `sft.recipes`, which is asked with the batches, the loss, the density
    and the seed that are given here, and with what `choice` says; or a callable,
    `recipe(model) -> Plan`.
    density (0.01 where nothing is said), structure, score, block_size, seed, batches, loss, and in
    `choice` whatever else it takes ({"budget": sft.LikeLora(8), "scope": "global", "cap": 0.5}).
    An unnamed score is "gradient" with `batches`, and "random", with a warning, without.

    target_modules: names (or their ends), or a regular expression of whole names, of the modules
    that are chosen from; None and "all-linear": every linear layer but output heads.
    exclude_modules, modules_to_save: as in every method of PEFT; a new head trains whole by
    modules_to_save.
    selections: written by `save_pretrained`, {module: what its entries look like}; the entries are
    in the adapter's file. Raises ValueError for more than one of the three ways.
    """

    target_modules: set[str] | list[str] | str | None = None
    exclude_modules: set[str] | list[str] | str | None = None
    modules_to_save: list[str] | None = None
    density: float | None = None
    structure: str | None = None
    score: Any = None
    block_size: int | tuple[int, int] = 64
    seed: int = 0
    selections: dict[str, dict] | None = None
    plan: Mapping | None = field(default=None, repr=False)
    recipe: str | Callable[[nn.Module], Plan] | None = field(default=None, repr=False)
    batches: Iterable[Any] | None = field(default=None, repr=False)
    loss: Callable | None = field(default=None, repr=False)
    choice: Mapping[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = SELECTIVE
        if self.plan is not None and self.recipe is not None:
            raise ValueError("recipe: there is a plan, too; give one of the two")
        if isinstance(self.recipe, str):
            get(self.recipe)
        elif self.recipe is not None and not callable(self.recipe):
            raise TypeError(
                "recipe: expected a callable (model) -> Plan, or the name of one of sft.recipes,"
                f" got {self.recipe!r}; for one with arguments take functools.partial"
            )
        if self.plan is not None:
            self.plan = checked_plan(self.plan)
        self._refuse_beside("plan" if self.plan is not None else "recipe")
        if "targets" in (self.choice or {}):
            raise ValueError("choice: targets of an adapter are its target_modules")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        # `save_pretrained` sets `selections` later, on a config whose choice is its own.
        self.is_from_file = self.selections is not None

    def _refuse_beside(self, way: str) -> None:
        """Raise ValueError where `way`, a plan or a recipe, would overrule something without a
        word.
        """
        if getattr(self, way) is None:
            return
        asked = ["density", "structure", "score", "batches", "choice", "exclude_modules"]
        if isinstance(self.recipe, str):
            asked = ["structure", "score", "exclude_modules"]
        if self.target_modules != _modules_of(self.plan):  # those that PEFT is told of a plan
            asked.append("target_modules")
        beside = [name for name in asked if getattr(self, name) is not None]
        if beside:
            raise ValueError(
                f"{beside[0]}: there is a {way}, too, which says what trains by itself; give one"
                " of the two"
            )

    def of_recipe(self, name: str, model: nn.Module) -> Plan:
        """The plan that the recipe of that name makes with what is said here.

        Raises TypeError for a process: what changes on the way is no plan of an adapter.
        """
        recipe = get(name)
        given = {"density": self.density, "loss": self.loss, "seed": self.seed or None}
        asked = {key: value for key, value in given.items() if value is not None}
        made = recipe(model, self.batches, **{**asked, **(self.choice or {})})
        if not isinstance(made, Plan):
            raise TypeError(
                f"recipe: {name!r} goes along with the training, and an adapter's selection stays;"
                f" sft.recipes.get({name!r})(model, …).start(model, lr) trains without PEFT"
            )
        return made

    def arguments(self) -> dict[str, Any]:
        """What is asked of `sparse_ft.select`, but for the targets."""
        named = {name: getattr(self, name) for name in _NAMED}
        asked = {**named, **(self.choice or {})}
        if asked["density"] is None and asked.get("budget") is None:
            asked["density"] = DENSITY
        return asked

    def to_dict(self) -> dict[str, Any]:
        """What `adapter_config.json` holds."""
        names = [each.name for each in fields(self) if each.name not in _IN_MEMORY]
        told = {name: getattr(self, name) for name in names}
        is_name = self.score is None or isinstance(self.score, str)
        return {**told, "score": self.score if is_name else type(self.score).__name__}


def _modules_of(plan: Mapping | None) -> set[str]:
    return {name.removesuffix(".weight") for name in plan or ()}


def checked_plan(plan: Mapping) -> Plan:
    """`plan` as a Plan; ValueError for what an adapter has no place for."""
    plan = plan if isinstance(plan, Plan) else Plan(plan)
    for name, what in plan.items():
        path, _, attribute = name.rpartition(".")
        if what == ALL:
            raise ValueError(
                f"plan: {name!r} is to train whole; an adapter of PEFT does that by"
                f" modules_to_save=[{path!r}]"
            )
        if attribute != "weight":
            raise ValueError(
                f"plan: {name!r} is no weight of a linear layer, and a selective adapter holds"
                " these alone; sft.convert takes the others"
            )
    return plan
