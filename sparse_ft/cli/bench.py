"""`sparse-ft bench CONFIG.yaml`."""

from typing import Annotated, Any

import typer

from . import options
from .misuse import Misuse, command
from .showing import say, show_json, show_table

COLUMNS = ("method", "trainable", "share", "optimiser", "held for backward", "s / step")


@command
def bench(
    config: options.CONFIG = None,
    model: options.MODEL = None,
    train: options.TRAIN = None,
    task: options.TASK = None,
    method: options.METHOD = None,
    density: options.DENSITY = None,
    structure: options.STRUCTURE = None,
    lean: options.LEAN = None,
    batch_size: options.BATCH_SIZE = None,
    sets: options.SET = None,
    steps: Annotated[int, options.number_option(options.whole(2), "steps of each method")] = 5,
    against: Annotated[str, typer.Option(help="what it is compared with, commas between")] = "full",
    as_json: options.JSON = False,
) -> None:
    """Measure a few steps of a method beside full training.

    Every method takes the same batch, of the longest rows. Nothing is written. The median of the
    steps after the first counts; other programs make it longer.
    """
    given = options.flags(
        model=model,
        train=train,
        task=task,
        method=method,
        density=density,
        structure=structure,
        lean=lean,
        batch_size=batch_size,
    )
    from .measuring import measured
    from .reading import checked, read_config
    from .runs import told

    asked = read_config(config, given, sets or ())
    others = [each.strip() for each in against.split(",") if each.strip()]
    for each in others:
        if each not in ("full", "lora"):
            raise Misuse(f"--against: expected full, lora or full,lora, got {each!r}")
    plain: Any = {"settings": {}, "plan": None, "also": [], "lean": False, "keep_origin": False}
    rows = []
    for each in others:
        if each != asked.method or asked.plan is not None:
            rows.append(measured(checked({**told(asked), **plain, "method": each}), steps))
    rows.append(measured(asked, steps))
    if as_json:
        show_json(rows)
        return
    batch = f"{asked.training.batch_size} rows, {steps} steps"
    show_table(batch, COLUMNS, [_cells(row) for row in rows])
    say("other programs on this machine make steps longer")


def _cells(row: dict[str, Any]) -> list[str]:
    from ..texts import readable

    return [
        row["method"],
        f"{row['trainable']:,}",
        f"{row['share']:.3%}",
        readable(row["optimizer_bytes"]),
        readable(row["saved_bytes"]),
        f"{row['seconds']:.3f}",
    ]
