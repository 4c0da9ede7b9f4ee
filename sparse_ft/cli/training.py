"""A run, from its config to a delta."""

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import runs
from .choosing import Chosen, check_method, choose, convert, plan_of, with_lora
from .config import Config
from .data import VALIDATION, Rows, read_rows, write_rows
from .encoding import Encoder, Example, classes_of
from .judging import learnt_nothing
from .library import sparse_ft
from .misuse import Interrupted, Misuse, blamed_on, one_line
from .models import Loaded, load, own_labels
from .showing import is_first, say, warn
from .trainer import arguments_of, evaluate, trainer_of
from .trl_trainer import left_as_it_was
from .writing import RUN, writing

BY = "sparse-ft finetune"
EPOCHS, MOST_EPOCHS = 3, 20
LEAST_STEPS = 250


@dataclass
class Prepared:
    """A run that could begin."""

    arguments: Any
    rows: Rows
    loaded: Loaded
    encoder: Encoder
    train: list[Example]
    validation: list[Example]
    chosen: Chosen


def prepare(config: Config, at: Path | None = None) -> Prepared:
    """Read all that the config names, and choose what trains. Writes nothing.

    at: the checkpoint that the run goes on from; its plan counts then.
    """
    check_method(config)
    arguments = arguments_of(config)  # looks at the trainer, too
    rows = read_rows(config)
    labels = None
    if config.task == "text-classification":
        labels = classes_of(rows.train, config.data.label)
        own = own_labels(config.model)
        if sorted(own) == sorted(labels):
            labels = own  # the head that is there goes on in its order
    training = config.training
    loaded = load(
        config.model, config.task, labels=labels, dtype=training.dtype, seed=training.seed
    )
    encoder = Encoder.of(config, loaded.tokenizer, labels or [])
    train = encoder.encode(rows.train, "data.train")
    validation = encoder.encode(rows.validation, "data.validation")
    arguments.num_train_epochs = epochs_of(config, len(train), arguments.world_size)
    _check_lengths(config, loaded, train + validation)
    batches = encoder.batches(train, training.batch_size, config.choose_batches)
    loaded.model.to(arguments.device)
    batches = [batch.to(arguments.device) for batch in batches]
    chosen = _chosen(config, loaded, batches, at)
    return Prepared(arguments, rows, loaded, encoder, train, validation, chosen)


def _check_lengths(config: Config, loaded: Loaded, examples: list[Example]) -> None:
    """Raise Misuse where a row is longer than the model can read."""
    positions = getattr(loaded.model.config, "max_position_embeddings", None)
    most = min(positions or math.inf, loaded.tokenizer.model_max_length)
    longest = max(len(each["input_ids"]) for each in examples)
    if longest > most:
        raise Misuse(
            f"data.max_length: {config.data.max_length}, and the longest row has {longest} tokens;"
            f" the model reads {most} at most: say `max_length: {most}` or less"
        )
    most = config.data.max_length
    full = sum(len(each["input_ids"]) >= most for each in examples)
    if full:
        say(
            f"data.max_length: {full} of {len(examples)} rows have {most} tokens or more; what is"
            " beyond them is cut"
        )


def _chosen(config: Config, loaded: Loaded, batches: list[Any], at: Path | None) -> Chosen:
    chosen = choose(config, loaded, batches)
    if at is not None and chosen.plan is not None:
        chosen.plan = plan_of(at)
    return chosen


def dry_run(config: Config) -> dict[str, Any]:
    """What a run would train and take: {"plan", "trainable", "of", "share", "bytes", …}.

    bytes: `sft.estimate` of a step on the longest rows; "text" has all of it for people.
    """
    ready = prepare(config)
    sft = sparse_ft()
    model, chosen = ready.loaded.model, ready.chosen
    plan: Any = chosen.plan
    if config.method == "lora" and plan is None:
        plan = {"lora": config.settings.get("r", 8)}
    inputs = dict(ready.encoder.longest(ready.train, config.training.batch_size))
    with blamed_on("--dry-run"):
        estimate = sft.estimate(model, plan, lean=config.lean, inputs=inputs, origin=chosen.origin)
    model, report = made_to_train(config, ready)
    found = sft.summary(model)
    steps = steps_of(config, len(ready.train))
    text = f"{chosen.plan or config.method}\n\n{report or found}\n\na step, the longest rows:\n"
    return {
        "method": config.method,
        "rows": {"train": len(ready.train), "validation": len(ready.validation)},
        "steps": steps,
        "trainable": found.trainable,
        "of": found.total,
        "share": found.trainable / found.total,
        "plan": None if chosen.plan is None else told_plan(chosen.plan),
        "bytes": {name: getattr(estimate, name) for name in _BYTES},
        "text": f"{text}{estimate}",
    }


_BYTES = ("weights", "values", "indices", "gradients", "optimizer_state", "activations", "peak")


def told_plan(plan: Any) -> dict[str, Any]:
    """{name: {"structure", "units", "entries"}, or "all"}."""
    told: dict[str, Any] = {}
    for name, what in plan.items():
        if isinstance(what, str):
            told[name] = what
            continue
        known = what.matrix_shape
        entries = None if known is None else what.nnz(known)
        told[name] = {"structure": what.kind, "units": len(what), "entries": entries}
    return told


def steps_of(config: Config, rows: int, processes: int = 1) -> int:
    """Steps of the optimiser that a run has."""
    if config.training.steps is not None:
        return config.training.steps
    passes = epochs_of(config, rows, processes)
    return math.ceil(_steps_of_a_pass(config, rows, processes) * passes)


def _steps_of_a_pass(config: Config, rows: int, processes: int) -> int:
    batches = math.ceil(rows / (config.training.batch_size * processes))
    return math.ceil(batches / config.training.accumulate)


def epochs_of(config: Config, rows: int, processes: int = 1) -> float:
    """Passes over the rows, where the config says none as many as take a head of classes along.

    A new head needs so many steps, however few rows there are; a language model begins with one.
    """
    asked = config.training
    if asked.epochs is not None:
        return asked.epochs
    if config.task != "text-classification" or asked.steps is not None:
        return EPOCHS
    needed = math.ceil(LEAST_STEPS / _steps_of_a_pass(config, rows, processes))
    return min(max(EPOCHS, needed), MOST_EPOCHS)


def made_to_train(config: Config, ready: Prepared) -> tuple[Any, Any]:
    """(the model that trains, the report of `sft.convert` or None)."""
    if ready.chosen.plan is not None:
        return ready.loaded.model, convert(config, ready.loaded.model, ready.chosen)
    if config.method == "lora":
        return with_lora(config, ready.loaded), None
    return ready.loaded.model, None


def run(config: Config, resume: bool, overwrite: bool) -> dict[str, Any]:
    """Train, and write what came of it; returns the results that results.json has."""
    at = runs.begin(config, resume, overwrite)
    ready = prepare(config, at)
    steps = steps_of(config, len(ready.train), ready.arguments.world_size)
    runs.check_unfinished(config, at, steps)
    if at is not None and runs.step_of(at) >= steps:
        # From its last checkpoint the Trainer would take a step too many.
        at = runs.last_checkpoint(config.output, below=steps)
        ready = prepare(config, at)
    if is_first():
        with writing(config.output, more=RUN):
            runs.write_beginning(config, overwrite)
            if ready.rows.validation:
                write_rows(ready.rows.validation, config.output / VALIDATION)
    model, report = made_to_train(config, ready)
    found = sparse_ft().summary(model)
    if ready.chosen.plan is not None and is_first():
        with writing(config.output, more=RUN):
            ready.chosen.plan.save(config.output / runs.PLAN)
    say(str(report or found))
    if at is not None:
        say(f"goes on from {at}")
    is_trl = config.trainer == "trl"
    with left_as_it_was(ready.loaded.model) if is_trl else contextlib.nullcontext():
        trainer = _train(config, ready, model, at)
    results = {
        "by": BY,
        "method": config.method,
        "trainable": found.trainable,
        "of": found.total,
        "steps": trainer.state.global_step,
        "train_loss": _mean_loss(trainer.state.log_history),
    }
    if not math.isfinite(results["train_loss"] or 0.0):
        raise Misuse(
            f"training.learning_rate: with {config.rate} the loss became {results['train_loss']};"
            " nothing was written but checkpoints: give a smaller rate, and --overwrite"
        )
    return _finish(config, ready, trainer, results)


def _mean_loss(history: list[dict[str, Any]]) -> float | None:
    """Of the steps since the run began, or went on."""
    losses = [entry["train_loss"] for entry in history if "train_loss" in entry]
    return float(losses[-1]) if losses else None


def _train(config: Config, ready: Prepared, model: Any, at: Path | None) -> Any:
    """The Trainer that has trained. Raises Interrupted after a signal."""
    from .stopping import StopAtStep

    stop = StopAtStep()
    trainer = trainer_of(
        config,
        ready.arguments,
        model,
        ready.chosen,
        ready.encoder,
        ready.train,
        ready.validation,
        [stop],
    )
    try:
        with writing(config.output, more=RUN), memory_of(config):
            trainer.train(resume_from_checkpoint=None if at is None else str(at))
    except KeyboardInterrupt:
        raise Interrupted(_way_on(config, "stopped")) from None
    finally:
        stop.put_back()
    if stop.signal is not None:
        step = trainer.state.global_step
        raise Interrupted(_way_on(config, f"stopped after step {step}"), 128 + stop.signal)
    return trainer


@contextlib.contextmanager
def memory_of(config: Config) -> Iterator[None]:
    """A device whose memory is full is told, with what makes a step smaller."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise Misuse(
            f"training.batch_size: {config.training.batch_size}, and the memory is full"
            f" ({one_line(error)}); give a smaller one with training.accumulate, `lean: true`, or"
            " training.dtype bfloat16; --dry-run says what a step takes"
        ) from error


def _way_on(config: Config, what: str) -> str:
    last = runs.last_checkpoint(config.output)
    if last is None:
        return f"{what}; there is no checkpoint yet, so the next run begins anew"
    return f"{what}; to go on from {last}: sparse-ft finetune {config.output} --resume"


def _finish(
    config: Config, ready: Prepared, trainer: Any, results: dict[str, Any]
) -> dict[str, Any]:
    """Evaluate the plain model, and write what was trained."""
    sft, model = sparse_ft(), ready.loaded.model
    delta = None
    if ready.chosen.plan is not None:
        delta = sft.Delta.of(model, str(config.model))
        sft.revert(model)
    judged = trainer.model if config.method == "lora" else model
    if ready.validation:
        size, cpu = config.training.batch_size, config.training.cpu
        results["evaluated"] = evaluate(judged, ready.encoder, ready.validation, size, cpu)
    doubt = learnt_nothing(config, ready.rows, trainer.state.log_history, results.get("evaluated"))
    if doubt is not None:
        results["warning"] = doubt
        warn(doubt)
    if not trainer.is_world_process_zero():
        return results
    folder = config.output
    with writing(folder, more=RUN):
        if delta is not None:
            if ready.chosen.process is not None:
                delta = _of_all_that_changed(config, ready)
            recipe = recipe_of(config, ready.encoder, results)
            origin = config.keep_origin
            saved = sft.save_delta(delta, folder, origin=origin, recipe=recipe)
            results["delta"] = str(folder / runs.DELTA)
            results["entries"] = saved.entries
        elif config.method == "lora":
            trainer.model.save_pretrained(folder / runs.ADAPTER)
            results["adapter"] = str(folder / runs.ADAPTER)
        else:
            model.save_pretrained(folder / runs.MODEL)
            ready.loaded.tokenizer.save_pretrained(folder / runs.MODEL)
            results["model"] = str(folder / runs.MODEL)
        text = json.dumps(results, indent=2)
        (folder / runs.RESULTS).write_text(text + "\n", encoding="utf-8")
    return results


def _of_all_that_changed(config: Config, ready: Prepared) -> Any:
    """The delta of a method that changes what trains: bit by bit against the base."""
    base = load(
        config.model,
        config.task,
        labels=ready.encoder.labels or None,
        dtype=config.training.dtype,
        seed=config.training.seed,
    )
    return sparse_ft().diff(base.model, ready.loaded.model.to("cpu"))


def recipe_of(config: Config, encoder: Encoder, results: dict[str, Any]) -> dict[str, Any]:
    """What the file of the delta says of how it came about: enough to evaluate it again."""
    training = config.training
    return {
        "by": BY,
        "task": config.task,
        "method": config.method if config.plan is None else "plan",
        "settings": json.loads(json.dumps(config.settings, default=str)),
        "dtype": training.dtype,
        "seed": training.seed,
        "learning_rate": config.rate,
        "steps": results["steps"],
        "batch_size": training.batch_size,
        "encoder": encoder.told(),
        "evaluated": results.get("evaluated"),
    }


def encoder_of(recipe: dict[str, Any], tokenizer: Any, where: str) -> Encoder:
    """The encoder that `recipe_of` told."""
    try:
        return Encoder(tokenizer=tokenizer, **recipe["encoder"])
    except (KeyError, TypeError):
        raise Misuse(
            f"{where} does not say how its rows are to be read; `sparse-ft finetune` writes deltas"
            " that do"
        ) from None
