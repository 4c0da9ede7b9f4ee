"""Batches for a model that is known by its config only: inputs of the right shapes."""

import inspect
from typing import Any

import torch
from torch import nn

Batch = dict[str, torch.Tensor]


def batch_for(
    model: nn.Module, batch_size: int, sequence_length: int, padded: bool = False
) -> Batch:
    """Keyword arguments for a training forward of a transformers model, beside its weights, labels
    included where it takes them.

    padded: with an attention mask that has zeros, as a batch of rows of several lengths has.
    """
    main = getattr(model, "main_input_name", "")
    make = {"input_ids": _text, "pixel_values": _pictures, "input_features": _sound}.get(main)
    if make is None:
        raise ValueError(
            f"inputs: no batch is known for a {type(model).__name__}; pass inputs={{argument:"
            " tensor} (a budget: sft.Bytes(size, inputs=…))"
        )
    takes = inspect.signature(model.forward).parameters
    batch = make(model.config, batch_size, sequence_length)
    tokens = torch.ones(batch_size, sequence_length, dtype=torch.long, device="cpu")
    if padded and "attention_mask" in takes and main == "input_ids":
        batch["attention_mask"] = tokens.clone()
        batch["attention_mask"][0, sequence_length // 2 :] = 0
    one_a_row = "Classification" in type(model).__name__ and "Token" not in type(model).__name__
    if "labels" in takes:
        batch["labels"] = (
            torch.zeros(batch_size, dtype=torch.long, device="cpu") if one_a_row else tokens
        )
    elif "decoder_input_ids" in takes:
        batch["decoder_input_ids"] = tokens
    device = next(model.parameters()).device
    return batch if device.type == "meta" else {key: x.to(device) for key, x in batch.items()}


def _text(config: Any, batch_size: int, sequence_length: int) -> Batch:
    return {"input_ids": torch.ones(batch_size, sequence_length, dtype=torch.long, device="cpu")}


def _pictures(config: Any, batch_size: int, _: int) -> Batch:
    size = getattr(config, "image_size", 224)
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return {
        "pixel_values": torch.zeros(batch_size, config.num_channels, height, width, device="cpu")
    }


def _sound(config: Any, batch_size: int, _: int) -> Batch:
    return {
        "input_features": torch.zeros(
            batch_size, config.num_mel_bins, 2 * config.max_source_positions, device="cpu"
        )
    }


def loss_of(output: Any) -> torch.Tensor:
    """The loss of a model's output, or the sum of its first tensor where it has none."""
    loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if loss is not None:
        return loss
    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output if output.dim() == 0 else output.sum()
