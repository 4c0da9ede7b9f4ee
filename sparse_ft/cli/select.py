"""`sparse-ft select CONFIG.yaml`."""

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .misuse import Misuse, blamed_on, command
from .showing import say, show_json


@command
def select(
    config: options.CONFIG = None,
    file: Annotated[Path, typer.Option("--file", help="where the plan goes")] = Path(
        "plan.safetensors"
    ),
    model: options.MODEL = None,
    train: options.TRAIN = None,
    text: options.TEXT = None,
    label: options.LABEL = None,
    task: options.TASK = None,
    method: options.METHOD = None,
    density: options.DENSITY = None,
    structure: options.STRUCTURE = None,
    seed: options.SEED = None,
    sets: options.SET = None,
    as_json: options.JSON = False,
) -> None:
    """Choose what trains, and write the plan to a file.

    `plan: plan.safetensors` in a config, instead of method and settings, trains it.
    """
    given = options.flags(
        model=model,
        train=train,
        text=text,
        label=label,
        task=task,
        method=method,
        density=density,
        structure=structure,
        seed=seed,
    )
    from .reading import read_config

    asked = read_config(config, given, sets or ())
    if asked.method in ("full", "lora"):
        raise Misuse(
            f"method: {asked.method!r} chooses nothing; say select, or a recipe (`sparse-ft"
            " recipes`)"
        )
    from .training import prepare, told_plan

    plan = prepare(asked).chosen.plan
    with blamed_on(f"--file {str(file)!r}"):
        plan.save(file)
    show_json({"file": str(file), "plan": told_plan(plan)}) if as_json else say(f"{plan}\n{file}")
