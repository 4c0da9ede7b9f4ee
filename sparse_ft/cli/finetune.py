"""`sparse-ft finetune CONFIG.yaml`."""

from typing import Annotated

import typer

from . import options
from .misuse import command
from .showing import say, show_json


@command
def finetune(
    config: options.CONFIG = None,
    model: options.MODEL = None,
    train: options.TRAIN = None,
    validation: options.VALIDATION = None,
    text: options.TEXT = None,
    label: options.LABEL = None,
    task: options.TASK = None,
    method: options.METHOD = None,
    density: options.DENSITY = None,
    structure: options.STRUCTURE = None,
    lean: options.LEAN = None,
    steps: options.STEPS = None,
    epochs: options.EPOCHS = None,
    batch_size: options.BATCH_SIZE = None,
    learning_rate: options.LEARNING_RATE = None,
    seed: options.SEED = None,
    output: options.OUTPUT = None,
    sets: options.SET = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from the last checkpoint of the run")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="begin anew where the folder holds a run")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say what would train, and what it takes")
    ] = False,
    show_keys: Annotated[
        bool, typer.Option("--keys", help="list what CONFIG.yaml may say, and end")
    ] = False,
    as_json: options.JSON = False,
) -> None:
    """Train a model on rows of a file. Flags count before what CONFIG.yaml says.

    The folder of the run gets the delta (of LoRA the adapter, of full training the model),
    results.json, the rows that were held out, and checkpoints. Ctrl-C ends it after its step with
    a checkpoint, and --resume goes on bit for bit. In several processes: torchrun
    --nproc-per-node 2 -m sparse_ft.cli finetune CONFIG.yaml
    """
    if show_keys:
        from . import keys

        keys.show_keys()
        return
    given = options.flags(
        model=model,
        train=train,
        validation=validation,
        text=text,
        label=label,
        task=task,
        method=method,
        density=density,
        structure=structure,
        lean=lean,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        output=output,
    )
    if resume and config is not None and config.is_dir():
        given.setdefault("output", str(config))
    from .reading import read_config

    asked = read_config(config, given, sets or ())
    from . import training

    if dry_run:
        told = training.dry_run(asked)
        words = told.pop("text")
        share = f"trainable {told['trainable']:,} of {told['of']:,} ({told['share']:.3%})"
        show_json(told) if as_json else say(f"{words}\n\n{share}, {told['steps']} steps")
        return
    results = training.run(asked, resume, overwrite)
    if as_json:
        show_json(results)
        return
    for name, value in results.get("evaluated", {}).items():
        say(f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}")
    say(f"written to {results.get('delta') or results.get('adapter') or results.get('model')}")
