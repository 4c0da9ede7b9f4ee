"""What trains: all of it, a LoRA, a selection, a recipe, or the plan of a file."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..texts import did_you_mean
from .config import Config
from .library import needed, sparse_ft
from .misuse import Misuse, blamed_on
from .models import Loaded

WAYS = ("select", "full", "lora")
# What a run says elsewhere, or what a file cannot hold.
ELSEWHERE = {
    "batches": "choose_batches",
    "max_batches": "choose_batches",
    "seed": "training.seed",
    "progress": "",
    "process_group": "",
    "units": "",
    "loss": "",
}
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
SELECT = {"density": 0.01, "structure": "columns"}


@dataclass
class Chosen:
    """What trains. plan: None where all does, or a LoRA. process: of a recipe that changes on the
    way. origin: whether the base's values are kept. decay_to: where the weight decay pulls.
    """

    plan: Any = None
    process: Any = None
    origin: bool = False
    decay_to: str = "zero"


def check_method(config: Config) -> None:
    """Raise Misuse for a method, or settings of it, that are none. Looks at no model."""
    method = config.method
    if config.plan is not None:
        if config.settings or method != "select":
            raise Misuse(
                f"plan: {str(config.plan)!r} says what trains, and so do method {method!r} and"
                " settings; leave one of both out"
            )
        if not config.plan.is_file():
            raise Misuse(
                f"plan: there is no file {str(config.plan)!r}; `sparse-ft select` writes one"
            )
        return
    if config.also and method in ("full", "lora"):
        raise Misuse(
            f"also: {config.also!r} goes with a selection; method {method!r} trains a new head"
            " anyway (settings: {modules_to_save: […]} of a LoRA names more)"
        )
    if config.lean and method in ("full", "lora"):
        raise Misuse(f"lean: it goes with a selection, not with method {method!r}; leave it out")
    known = _settings_of(config)
    for name in config.settings:
        if name in ELSEWHERE and method != "lora":
            instead = ELSEWHERE[name]
            way_out = f"; say {instead}" if instead else ", for a file cannot hold it"
            raise Misuse(f"settings.{name}: it is no setting of a run{way_out}")
        if name not in known:
            raise Misuse(
                f"settings.{name}: method {method!r} has no such setting{did_you_mean(name, known)}"
            )


def _settings_of(config: Config) -> list[str]:
    """What the method can be told."""
    if config.method == "full":
        return []
    if config.method == "lora":
        peft = needed("peft", "peft", "method 'lora'")
        return list(inspect.signature(peft.LoraConfig).parameters)
    sft = sparse_ft()
    if config.method == "select":
        return list(inspect.signature(sft.select).parameters)[1:]
    return list(recipe_of(config.method).settings)


def recipe_of(name: str) -> Any:
    """The recipe `name`."""
    sft = sparse_ft()
    known = [recipe.name for recipe in sft.recipes.list()]
    if name not in known:
        meant = did_you_mean(name.lower(), [*WAYS, *known])
        raise Misuse(f"method: there is no {name!r}{meant} (`sparse-ft recipes` lists them)")
    return sft.recipes.get(name)


def choose(config: Config, loaded: Loaded, batches: list[Any]) -> Chosen:
    """What trains in the model, which stays as it is.

    batches: of the training data, for what ranks by gradients. What the model folder lacked (a new
    head) trains whole.
    """
    if config.method in ("full", "lora") and config.plan is None:
        return Chosen()
    sft, model = sparse_ft(), loaded.model
    chosen = _asked(config, model, batches)
    with blamed_on("also"):
        more = sft.Plan.match(model, dict.fromkeys(config.also, "all")) if config.also else {}
    whole = {**dict.fromkeys(loaded.fresh, "all"), **more}
    if chosen.process is not None:
        chosen.process.plan = chosen.process.plan | whole
        chosen.plan = chosen.process.plan
    else:
        chosen.plan = chosen.plan | whole
    chosen.origin = chosen.origin or config.keep_origin
    return chosen


def _asked(config: Config, model: Any, batches: list[Any]) -> Chosen:
    sft = sparse_ft()
    if config.plan is not None:
        with blamed_on("plan"):
            return Chosen(sft.Plan.load(config.plan))
    model.train()
    seed = config.training.seed
    if config.method == "select":
        settings = {**SELECT, **config.settings}
        if "budget" in config.settings and "density" not in config.settings:
            del settings["density"]
        with blamed_on("settings"):
            return Chosen(sft.select(model, batches=batches, seed=seed, **settings))
    recipe = recipe_of(config.method)
    settings = dict(config.settings)
    if "seed" in recipe.settings:
        settings["seed"] = seed
    with blamed_on(f"method {config.method!r}, settings"):
        made = recipe(model, batches, **settings)
    keeps = recipe.decay_to == "origin"
    if isinstance(made, sft.recipes.Process):
        if not made.plan:
            raise Misuse(
                f"method: {config.method!r} trains deltas on layers, no entries of a weight,"
                " which no run of this command can keep; in a program:"
                f" sft.recipes.get({config.method!r})(model, batches).start(model, lr)"
            )
        return Chosen(made.plan, made, made.origin or keeps, made.decay_to)
    return Chosen(made, None, keeps, recipe.decay_to)


def convert(config: Config, model: Any, chosen: Chosen) -> Any:
    """Make it train that, in place; returns the report."""
    with blamed_on("plan" if config.plan is not None else "settings"):
        return sparse_ft().convert(model, chosen.plan, lean=config.lean, origin=chosen.origin)


def with_lora(config: Config, loaded: Loaded) -> Any:
    """The model with a LoRA of PEFT; what the folder lacked trains whole."""
    peft = needed("peft", "peft", "method 'lora'")
    asked = {**LORA, **config.settings}
    heads = sorted({name.rpartition(".")[0] for name in loaded.fresh})
    if heads and "modules_to_save" not in asked:
        asked["modules_to_save"] = heads
    with blamed_on("settings"):
        return peft.get_peft_model(loaded.model, peft.LoraConfig(**asked))


def plan_of(checkpoint: Path) -> Any:
    """The plan that a checkpoint's run was converted with when it was saved."""
    from ..trainers.hugging_face import PLAN

    sft = sparse_ft()
    with blamed_on(f"--resume: {str(checkpoint)!r}"):
        if (checkpoint / PLAN).is_file():
            return sft.Plan.load(checkpoint / PLAN)
        return sft.load_delta(checkpoint).plan
