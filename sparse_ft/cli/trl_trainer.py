"""TRL's SFTTrainer for a config: `trainer: trl`."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .config import Config
from .encoding import Example
from .library import needed
from .misuse import Misuse, blamed_on

KEY = "trainer: 'trl'"
# Arguments of TRL's SFTConfig that the config says by another name: rows come as tokens.
OURS = {
    "max_length": "data.max_length",
    "dataset_text_field": "data.text",
    "completion_only_loss": "data.prompt",
    "assistant_only_loss": "data.messages",
    "dataset_kwargs": "data",
    "model_init_kwargs": "model",
    "trust_remote_code": "model",
    "chat_template_path": "model",
    "eos_token": "model",
    "pad_token": "model",
}
RECOMPUTING = ("activation_checkpointing", "gradient_checkpointing")
COLUMNS = ("input_ids", "attention_mask", "labels")


def trl() -> Any:
    """TRL, off the network and without progress bars of its data sets."""
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    library = needed("trl", "trl", KEY)
    needed("datasets", "trl", KEY).disable_progress_bars()
    return library


def check_task(config: Config) -> None:
    """Raise Misuse where TRL trains no such thing."""
    if config.task != "causal-lm":
        raise Misuse(
            f"trainer: {config.trainer!r}, and the task is {config.task!r}; TRL trains language"
            " models: leave it out, or say `task: causal-lm`"
        )


def defaults(config: Config, known: Sequence[str]) -> dict[str, Any]:
    """What SFTConfig takes otherwise than TrainingArguments.

    known: the arguments of this release, of which the newer name of recomputing comes first.
    """
    ours: dict[str, Any] = {"max_length": config.data.max_length}
    if not any(name in config.training.arguments for name in RECOMPUTING):
        ours[next(name for name in RECOMPUTING if name in known)] = False
    return ours


def sft_trainer(
    model: Any,
    arguments: Any,
    train: list[Example],
    validation: list[Example],
    tokenizer: Any,
    **more: Any,
) -> Any:
    """An SFTTrainer over examples that are tokens already, with which of them are learnt."""
    library, datasets = trl(), needed("datasets", "trl", KEY)

    def rows(examples: list[Example]) -> Any:
        return datasets.Dataset.from_list(
            [{name: each[name] for name in COLUMNS} for each in examples]
        )

    with blamed_on(f"training, {KEY}"):
        trainer = library.SFTTrainer(
            model,
            arguments,
            train_dataset=rows(train),
            eval_dataset=rows(validation) if validation else None,
            processing_class=tokenizer,
            **more,
        )
    _check_labels(trainer, train[0])
    return trainer


def _check_labels(trainer: Any, example: Example) -> None:
    """Raise Misuse for a release of TRL that makes labels of its own of every token."""
    if trainer.args.packing:
        return
    batch = trainer.data_collator([trainer.train_dataset[0]])
    if batch["labels"][0].tolist() != example["labels"]:
        raise Misuse(
            f"{KEY}: this release of TRL leaves out which tokens are learnt: pip install -U trl"
        )


@contextlib.contextmanager
def left_as_it_was(model: Any) -> Iterator[None]:
    """What SFTTrainer hangs onto a model, a forward of its own and settings, is gone afterwards."""
    config = model.config.get_text_config()
    before: Mapping[str, Any] = dict(vars(config))
    forward = vars(model).get("forward")
    try:
        yield
    finally:
        vars(config).update(before)
        vars(model).pop("forward", None)
        if forward is not None:
            model.forward = forward
