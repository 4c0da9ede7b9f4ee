"""export_lora: selected rows and columns are exactly a low-rank adapter.

So whatever serves LoRA serves them.

A change of C columns is B · A with A [C, in] that picks the columns (one 1 a row) and B [out, C]
the change itself; of R rows, A [R, in] is the change and B [out, R] puts it in its rows.
"""

import os
import re
from typing import Any

import torch
from torch import nn

from . import places
from .adapters import PREFIX, change_of, known_delta, module_of, whole_tensors, write_adapter
from .delta import Delta
from .part import Part


def export_lora(
    source: Delta | nn.Module, folder: str | bytes | os.PathLike, base: nn.Module | None = None
) -> None:
    """Write what trained as a LoRA, for PEFT, vLLM and whatever else loads one.

    `PeftModel.from_pretrained(base, folder)` computes what the fine-tuned model does.

    source: a delta or a converted model of rows and columns of `nn.Linear` and transformers'
    Conv1D, rows of embeddings, and tensors that changed whole, which become `modules_to_save`.
    base: the base model, where source does not know what it held. The rank of a layer is its number
    of rows or columns; the scaling is 1. Stored in fp32.

    Raises ValueError, naming the tensor and the way out, for what no LoRA is.
    """
    delta = known_delta(source, base)
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    for name, part in delta.items():
        if part.selection is not None:
            module = module_of(name)
            ranks[module] = len(part.selection)
            tensors |= _factors(name, module, part)
    modules_to_save, whole = whole_tensors(delta)
    if not ranks:
        raise ValueError(
            "source: no rows or columns trained in it, so there is no LoRA; save the tensors that"
            " trained whole with sft.save_delta"
        )
    rank = max(ranks.values())
    others = {f"^{re.escape(module)}": r for module, r in ranks.items() if r != rank}
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": delta.base_name,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(part.reader == places.CONV1D for part in delta.values()),
        "target_modules": list(ranks),
        "modules_to_save": modules_to_save or None,
        "inference_mode": True,
    }
    write_adapter(folder, config, tensors | whole)


def _factors(name: str, module: str, part: Part) -> dict[str, torch.Tensor]:
    """A and B of one part, by PEFT's names."""
    selection: Any = part.selection  # nothing that changed whole comes here
    is_rows = selection.kind == "rows"
    if selection.kind not in ("rows", "columns"):
        raise ValueError(
            f"source: {name!r} trained {selection.kind}, which no LoRA of their number is;"
            " sft.export_shira, or sft.save_delta"
        )
    change = change_of(part)
    lines = selection.index.cpu().long()
    size = part.matrix_shape[0 if is_rows else 1]
    picks = torch.zeros(len(lines), size, dtype=torch.float32, device="cpu")
    picks[torch.arange(len(lines), device="cpu"), lines] = 1
    if part.reader == places.EMBEDDING and is_rows:
        a, b = picks, change.T  # an embedding's A is [rank, rows of the table]
        names = f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"
    elif part.reader in (places.LINEAR, places.CONV1D):
        if part.reader == places.CONV1D:  # stored [in, out]: its rows are input features
            change, is_rows = change.T, not is_rows
        a, b = (change, picks.T) if is_rows else (picks, change)
        names = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
    else:
        raise ValueError(
            f"source: {name!r} is no weight of a linear layer, and trained in part, which no LoRA"
            " is; train it whole ('all') or leave it out"
        )
    return {PREFIX + names[0]: a, PREFIX + names[1]: b}
