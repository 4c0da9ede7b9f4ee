"""Loading a pretrained encoder with a fresh classification head, and telling head from body."""

from pathlib import Path

import torch
from torch import nn

from demo.errors import DemoError


def check_folder(folder):
    """Raise a DemoError that says what a model folder lacks."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DemoError(f"--model: there is no folder {folder}")
    if not (folder / "config.json").is_file():
        raise DemoError(
            f"--model: {folder} holds no config.json; a folder written by save_pretrained is"
            " expected"
        )
    if not any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin")):
        raise DemoError(f"--model: {folder} holds no weights (*.safetensors or pytorch_model*.bin)")


def load_tokenizer(folder):
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (
        Exception
    ) as error:  # whatever the tokenizer's files provoke, the user needs the folder's name
        raise DemoError(f"--model: no tokenizer could be read from {folder}: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(task, seed):
    """The checkpoint in float32 with a head for the task's classes, in training mode.

    `seed` makes the head.
    """
    from transformers import AutoModelForSequenceClassification, logging

    logging.set_verbosity_error()  # "some weights are newly initialised" is the point here
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            task.checkpoint,
            num_labels=len(task.classes),
            local_files_only=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise DemoError(
            f"--model: {task.checkpoint} could not be loaded as a text classifier: {error}"
        ) from error
    model.config.pad_token_id = task.pad_id
    return model.train()


def head_modules(model):
    """Names of the top-level modules beside the pretrained body that hold parameters, e.g.
    ["classifier"].
    """
    names = [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    ]
    if not names:
        raise DemoError(f"--model: no classification head found beside `{model.base_model_prefix}`")
    return names


def head_parameters(model):
    """Names of the head's parameters, e.g. ["classifier.weight", "classifier.bias"]."""
    heads = set(head_modules(model))
    return [name for name, _ in model.named_parameters() if name.split(".")[0] in heads]


def body_linears(model):
    """Names of the nn.Linear modules of the body."""
    heads = set(head_modules(model))
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[0] not in heads
    ]
