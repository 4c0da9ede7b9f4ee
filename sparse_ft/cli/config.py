"""What a config file may say, key by key, with what each key means."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from .library import sparse_ft

TASKS = ("text-classification", "causal-lm")
DTYPES = ("float32", "bfloat16", "float16")
DTYPE = Literal["float32", "bfloat16", "float16"]
TASK = Literal["text-classification", "causal-lm"]
TRAINER = Literal["transformers", "trl"]
SCHEDULE = Literal["linear", "cosine", "constant", "constant_with_warmup"]
FILE_KINDS = (".csv", ".tsv", ".jsonl", ".txt")


def _no_flag(value: Any) -> Any:
    """`true` is no number, though Python counts with it."""
    if isinstance(value, bool):
        raise ValueError("a number")
    return value


def _no_empty_path(value: Any) -> Any:
    """Nothing at all would mean the folder that one is in."""
    if value == "":
        raise ValueError("a path")
    return value


File = Annotated[Path, BeforeValidator(_no_empty_path)]
Count = Annotated[int, BeforeValidator(_no_flag), Field(ge=1)]
Share = Annotated[float, BeforeValidator(_no_flag), Field(ge=0, lt=1)]
Positive = Annotated[float, BeforeValidator(_no_flag), Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, BeforeValidator(_no_flag), Field(ge=0, allow_inf_nan=False)]
Seed = Annotated[int, BeforeValidator(_no_flag), Field(ge=0, lt=2**32)]


class Strict(BaseModel):
    """A part of the config. A key that it does not know is refused."""

    model_config = ConfigDict(extra="forbid", validate_default=False)


class Data(Strict):
    """What is learnt from."""

    train: File = Field(description="a .csv, .tsv, .jsonl or .txt file; or package:NAME/FILE")
    validation: Share | File = Field(
        0.1, description="a share of the rows to hold out, or a file of its own; 0: none"
    )
    text: str = Field("text", description="column (or key) of the text")
    label: str = Field("label", description="column of the class, of text-classification")
    prompt: str | None = Field(
        None, description="of causal-lm: column of what is given and not learnt"
    )
    messages: str | None = Field(
        None,
        description="of causal-lm: key of a chat, [{role, content}, …]; the assistant is learnt",
    )
    max_length: Count = Field(128, description="tokens of a row; longer ones are cut")
    where: dict[str, Any] = Field(
        default_factory=dict, description="column: value of the rows to take; all otherwise"
    )
    limit: Count | None = Field(None, description="rows of the training file to take at most")


class Training(Strict):
    """How it is learnt: what transformers' TrainingArguments call otherwise is in brackets."""

    steps: Count | None = Field(None, description="steps of the optimiser; or epochs")
    epochs: Positive | None = Field(
        None, description="passes over the rows; 3 without steps, of few rows with classes more"
    )
    batch_size: Count = Field(16, description="rows of a step of one process")
    accumulate: Count = Field(1, description="batches of a step (gradient_accumulation_steps)")
    learning_rate: Positive | None = Field(
        None,
        description="what did best for the recipe on a small model (`sparse-ft recipes NAME`), or"
        " 1e-3; 1e-4 where all of the model trains",
    )
    weight_decay: NotNegative = Field(0.01, description="towards what the recipe says, or 0")
    warmup: Share = Field(0.1, description="share of the steps in which the rate grows")
    schedule: SCHEDULE = Field("linear", description="of the rate after that")
    clip: NotNegative = Field(1.0, description="norm of the gradient at most; 0: no limit")
    seed: Seed = Field(0, description="of the head, the order of the rows, the choice, dropout")
    dtype: DTYPE = Field("float32", description="of the model's weights")
    autocast: Literal["none", "bf16", "fp16"] = Field("none", description="mixed precision")
    log_every: Count = Field(10, description="steps between two lines")
    save_every: Count = Field(100, description="steps between two checkpoints")
    evaluate_every: Count | None = Field(None, description="steps between two validations")
    keep: Count = Field(2, description="checkpoints that stay")
    cpu: bool = Field(False, description="stay on the CPU where there is a GPU, too")
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="any other of TrainingArguments, by its own name"
    )


class Config(Strict):
    """A run of `sparse-ft finetune`."""

    model: File = Field(description="folder with a model and its tokenizer; or package:NAME/FOLDER")
    task: TASK = Field("text-classification", description="what is learnt")
    data: Data
    trainer: TRAINER = Field(
        "transformers", description="who runs it: transformers' Trainer, or TRL's SFTTrainer"
    )
    method: str = Field(
        "select", description="select; full; lora; or a recipe (`sparse-ft recipes` lists them)"
    )
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="of the method: of sft.select, of the recipe, or of peft.LoraConfig",
    )
    plan: File | None = Field(
        None, description="file of `sparse-ft select`: what trains, instead of method and settings"
    )
    also: list[str] = Field(
        default_factory=list, description="globs of parameters that train whole beside it"
    )
    choose_batches: Count = Field(4, description="batches that the choice looks at")
    lean: bool = Field(False, description="keep less for what does not train (sft.lean)")
    keep_origin: bool = Field(
        False, description="keep the base's values in the delta: `delta remove` takes it out again"
    )
    training: Training = Field(default_factory=Training)
    output: File = Field(Path("run"), description="folder of the run")

    @property
    def rate(self) -> float:
        """The learning rate, where the file says none that of the method."""
        if self.training.learning_rate is not None:
            return self.training.learning_rate
        if self.plan is not None:
            return 1e-3
        if self.method == "full":
            return 1e-4
        recipes = {recipe.name: recipe for recipe in sparse_ft().recipes.list()}
        recipe = recipes.get(self.method)
        return (recipe and recipe.learning_rate(self.task)) or 1e-3
