"""The Trainer for a config: its arguments, its optimiser, its callbacks."""

import dataclasses
from typing import Any

from ..texts import did_you_mean
from . import trl_trainer
from .choosing import Chosen
from .config import Config
from .encoding import Encoder, Example
from .library import sparse_ft, transformers
from .misuse import Misuse, blamed_on, one_line

# TrainingArguments that the config says by another name, or that a run depends on.
OURS = {
    "output_dir": "output",
    "max_steps": "training.steps",
    "num_train_epochs": "training.epochs",
    "per_device_train_batch_size": "training.batch_size",
    "per_device_eval_batch_size": "training.batch_size",
    "gradient_accumulation_steps": "training.accumulate",
    "learning_rate": "training.learning_rate",
    "weight_decay": "training.weight_decay",
    "warmup_steps": "training.warmup",
    "warmup_ratio": "training.warmup",
    "lr_scheduler_type": "training.schedule",
    "max_grad_norm": "training.clip",
    "seed": "training.seed",
    "data_seed": "training.seed",
    "bf16": "training.autocast",
    "fp16": "training.autocast",
    "logging_steps": "training.log_every",
    "save_steps": "training.save_every",
    "save_strategy": "training.save_every",
    "eval_steps": "training.evaluate_every",
    "eval_strategy": "training.evaluate_every",
    "save_total_limit": "training.keep",
    "use_cpu": "training.cpu",
    "optim": "method",
    "remove_unused_columns": "data",
    "resume_from_checkpoint": "--resume",
}


def arguments_of(config: Config) -> Any:
    """transformers' TrainingArguments, or TRL's; in several processes they join them."""
    library, asked = transformers(), config.training
    is_trl = config.trainer == "trl"
    if is_trl:
        trl_trainer.check_task(config)
    kind = trl_trainer.trl().SFTConfig if is_trl else library.TrainingArguments
    known = [each.name for each in dataclasses.fields(kind) if each.init]
    ours = OURS | (trl_trainer.OURS if is_trl else {})
    for name in asked.arguments:
        if name in ours:
            raise Misuse(f"training.arguments.{name}: say `{ours[name]}` instead")
        if name not in known:
            raise Misuse(
                f"training.arguments.{name}: {kind.__name__} has no such argument"
                f"{did_you_mean(name, known)}"
            )
    if asked.steps is not None and asked.epochs is not None:
        raise Misuse(
            f"training.epochs: {asked.epochs}, and training.steps is {asked.steps}; leave one out"
        )
    if asked.evaluate_every is not None and config.data.validation == 0:
        raise Misuse(
            f"training.evaluate_every: {asked.evaluate_every}, and data.validation is 0, so there"
            " are no rows to evaluate on; hold some out, or leave it out"
        )
    arguments = {
        "output_dir": str(config.output),
        "max_steps": -1 if asked.steps is None else asked.steps,
        "per_device_train_batch_size": asked.batch_size,
        "per_device_eval_batch_size": asked.batch_size,
        "gradient_accumulation_steps": asked.accumulate,
        "learning_rate": config.rate,
        "weight_decay": asked.weight_decay,
        "warmup_steps": asked.warmup,
        "lr_scheduler_type": asked.schedule,
        "max_grad_norm": asked.clip,
        "seed": asked.seed,
        "bf16": asked.autocast == "bf16",
        "fp16": asked.autocast == "fp16",
        "logging_steps": asked.log_every,
        "save_strategy": "steps",
        "save_steps": asked.save_every,
        "save_total_limit": asked.keep,
        "eval_strategy": "no" if asked.evaluate_every is None else "steps",
        "eval_steps": asked.evaluate_every,
        "use_cpu": asked.cpu,
        "report_to": [],
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        **(trl_trainer.defaults(config, known) if is_trl else {}),
        **asked.arguments,
    }
    if "warmup_ratio" in known and "warmup_steps" in known and _is_old(library):
        arguments["warmup_ratio"] = arguments.pop("warmup_steps")
    try:
        return kind(**arguments)
    except (ValueError, TypeError, ImportError, RuntimeError, OSError) as error:
        where = f"training.arguments: {asked.arguments}" if asked.arguments else "training"
        raise Misuse(f"{where}: {one_line(error)}") from error


def _is_old(library: Any) -> bool:
    """Of release 4, in which `warmup_steps` takes no share."""
    return int(library.__version__.partition(".")[0]) < 5


def trainer_of(
    config: Config,
    arguments: Any,
    model: Any,
    chosen: Chosen,
    encoder: Encoder,
    train: list[Example],
    validation: list[Example],
    callbacks: list[Any],
) -> Any:
    """A Trainer that trains the model as it is."""
    sft, library = sparse_ft(), transformers()
    callbacks = list(callbacks)
    optimizer = None
    if chosen.plan is not None:
        from ..trainers import ScheduleCallback, SparseCallback

        callbacks.append(SparseCallback())
        if chosen.process is not None:
            callbacks.append(ScheduleCallback(chosen.process))
        settings = {
            "lr": config.rate,
            "weight_decay": config.training.weight_decay,
            "decay_to": chosen.decay_to,
        }
        optimizer = (sft.SelectiveAdamW, settings)
    if config.trainer == "trl":
        return trl_trainer.sft_trainer(
            model,
            arguments,
            train,
            validation,
            encoder.tokenizer,
            callbacks=callbacks,
            optimizer_cls_and_kwargs=optimizer,
        )
    is_classes = config.task == "text-classification"
    with blamed_on("training"):
        trainer = library.Trainer(
            model,
            arguments,
            data_collator=encoder.collator(),
            train_dataset=train,
            eval_dataset=validation or None,
            processing_class=encoder.tokenizer,
            compute_metrics=_accuracy if is_classes else None,
            callbacks=callbacks,
            optimizer_cls_and_kwargs=optimizer,
        )
    if is_classes:
        # The loss of classes is a mean over its batch, whatever the forward takes: otherwise the
        # gradients of accumulated batches would be added up.
        trainer.model_accepts_loss_kwargs = False
    return trainer


def _accuracy(predicted: Any) -> dict[str, float]:
    """Of the classes with the largest logits."""
    logits = predicted.predictions
    if isinstance(logits, tuple):
        logits = logits[0]
    right = logits.argmax(-1) == predicted.label_ids
    return {"accuracy": float(right.mean())}


def evaluate(
    model: Any, encoder: Encoder, examples: list[Example], batch_size: int, cpu: bool = False
) -> dict[str, Any]:
    """{"accuracy" or "loss" and "perplexity", "examples"} of a plain model.

    The same batches in the same order whoever asks, so that a model of the same bits gets the same
    result.
    """
    import math
    import tempfile

    library = transformers()
    with tempfile.TemporaryDirectory() as nowhere:
        arguments = library.TrainingArguments(
            output_dir=nowhere,
            per_device_eval_batch_size=batch_size,
            use_cpu=cpu,
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        is_classes = encoder.task == "text-classification"
        judge = library.Trainer(
            model,
            arguments,
            data_collator=encoder.collator(),
            compute_metrics=_accuracy if is_classes else None,
            callbacks=[],
        )
        judge.remove_callback(library.PrinterCallback)
        found = judge.evaluate(examples)
    told: dict[str, Any] = {"examples": len(examples)}
    if is_classes:
        told["accuracy"] = found["eval_accuracy"]
    else:
        told["perplexity"] = math.exp(min(found["eval_loss"], 700.0))
    return told | {"loss": found["eval_loss"]}
