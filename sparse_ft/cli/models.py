"""A model folder as a model for a task."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .library import transformers
from .locating import located
from .misuse import Misuse, one_line

HEADS = {
    "text-classification": "AutoModelForSequenceClassification",
    "causal-lm": "AutoModelForCausalLM",
}
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass
class Loaded:
    """fresh: names of the parameters that the folder lacks, or has for other classes."""

    model: Any
    tokenizer: Any
    fresh: list[str]


def checked_folder(folder: Path, key: str) -> Path:
    """Where the folder lies. Raises Misuse unless it has a config and weights."""
    folder = located(folder, key)
    if not folder.is_dir():
        raise Misuse(
            f"{key}: there is no folder {str(folder)!r}; give one that save_pretrained wrote"
            " (nothing is downloaded)"
        )
    if not (folder / "config.json").is_file():
        raise Misuse(
            f"{key}: {str(folder)!r} holds no config.json; a folder that save_pretrained wrote is"
            " expected"
        )
    if not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        raise Misuse(
            f"{key}: {str(folder)!r} holds no weights ({', '.join(WEIGHTS)});"
            " give one that save_pretrained wrote"
        )
    return folder


def load(
    folder: Path,
    task: str,
    *,
    labels: list[str] | None = None,
    dtype: str = "float32",
    seed: int = 0,
    key: str = "model",
) -> Loaded:
    """The model in `folder` for `task`, and its tokenizer.

    labels: the classes of text-classification. seed: of what the folder lacks. key: what names the
    folder, for messages.
    """
    folder = checked_folder(folder, key)
    library = transformers()
    import torch

    tokenizer = _tokenizer(folder, key)
    known: dict[str, Any] = {}
    is_of_other_classes = labels is not None and own_labels(folder, key) != labels
    if labels is not None:
        known["num_labels"] = len(labels)
        known["id2label"] = dict(enumerate(labels))
        known["label2id"] = {label: number for number, label in enumerate(labels)}
    torch.manual_seed(seed)
    try:
        model, told = getattr(library, HEADS[task]).from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=getattr(torch, dtype),
            **known,
        )
    except Exception as error:  # whatever its files make transformers say
        raise Misuse(
            f"{key}: {str(folder)!r} cannot be loaded for task {task!r}: {one_line(error)}"
        ) from error
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    fresh = _fresh(model, told)
    if is_of_other_classes:  # a head that is there was made for those
        fresh = list(dict.fromkeys([*fresh, *_of_the_head(model)]))
    return Loaded(model, tokenizer, fresh)


def own_labels(folder: Path, key: str = "model") -> list[str]:
    """The classes that the config in the folder knows, in the order of their numbers."""
    folder = checked_folder(folder, key)
    try:
        config = transformers().AutoConfig.from_pretrained(folder, local_files_only=True)
        return [str(config.id2label[number]) for number in range(len(config.id2label))]
    except Exception:  # `load` says what is wrong with it
        return []


def _of_the_head(model: Any) -> list[str]:
    """The parameters beside the body."""
    body = f"{model.base_model_prefix}."
    return [name for name, _ in model.named_parameters() if not name.startswith(body)]


def _fresh(model: Any, told: dict[str, Any]) -> list[str]:
    mismatched = {each if isinstance(each, str) else each[0] for each in told["mismatched_keys"]}
    lacking = set(told["missing_keys"]) | mismatched
    return [name for name, _ in model.named_parameters() if name in lacking]


def _tokenizer(folder: Path, key: str) -> Any:
    try:
        tokenizer = transformers().AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever its files make transformers say
        raise Misuse(
            f"{key}: no tokenizer can be read from {str(folder)!r}: {one_line(error)}; save one"
            " there with tokenizer.save_pretrained"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_as_it_is(folder: Path, key: str) -> Any:
    """The model in `folder`, of the class that its config names."""
    folder = checked_folder(folder, key)
    library = transformers()
    try:
        config = library.AutoConfig.from_pretrained(folder, local_files_only=True)
        name = (config.architectures or [""])[0]
        cls = getattr(library, name, library.AutoModel)
        return cls.from_pretrained(folder, local_files_only=True, dtype="auto")
    except Exception as error:  # whatever its files make transformers say
        raise Misuse(f"{key}: {str(folder)!r} cannot be loaded: {one_line(error)}") from error
