"""SHiRA (Bhardwaj et al. 2024), PEFT's format of sparse adapters.

What is added, in fp32, and row and column of each entry, in int32: 12 bytes an entry.
"""

import math
import os

import torch
from torch import nn

from . import places
from .adapters import (
    PREFIX,
    change_of,
    delta_of_changes,
    known_delta,
    module_of,
    read_adapter,
    whole_tensors,
    write_adapter,
)
from .delta import Delta
from .dense import in_order
from .overlap import sorted_positions
from .part import Part


def export_shira(
    source: Delta | nn.Module, folder: str | bytes | os.PathLike, base: nn.Module | None = None
) -> None:
    """Write what trained as a SHiRA adapter, which `PeftModel.from_pretrained(base, folder)` loads.

    source: a delta or a converted model; entries, blocks, rows and columns of `nn.Linear`, and
    tensors that changed whole, which become `modules_to_save`. base: the base model, where source
    does not know what it held. PEFT wants r * (in + out) entries of each layer, with one r for all:
    entries that add nothing fill up. Raises ValueError, naming the tensor, for what is none.
    """
    delta = known_delta(source, base)
    selected = {name: part for name, part in delta.items() if part.selection is not None}
    if not selected:
        raise ValueError("source: no entries of a matrix trained in it; sft.save_delta keeps it")
    rank = max(_rank(name, part) for name, part in selected.items())
    tensors: dict[str, torch.Tensor] = {}
    for name, part in selected.items():
        count = rank * sum(part.matrix_shape)
        if count > math.prod(part.matrix_shape):
            raise ValueError(
                f"source: SHiRA wants {count} entries of {name!r} (r = {rank}), which has"
                f" {math.prod(part.matrix_shape)}; sft.save_delta, or export fewer layers at once"
            )
        tensors |= _tensors(module_of(name), part, count)
    modules_to_save, whole = whole_tensors(delta)
    config = {
        "peft_type": "SHIRA",
        "task_type": None,
        "base_model_name_or_path": delta.base_name,
        "r": rank,
        "mask_type": "random",
        "fan_in_fan_out": False,
        "target_modules": [module_of(name) for name in selected],
        "modules_to_save": modules_to_save or None,
        "inference_mode": True,
    }
    write_adapter(folder, config, tensors | whole)


def _rank(name: str, part: Part) -> int:
    if part.reader != places.LINEAR:
        raise ValueError(
            f"source: {name!r} is no weight of an nn.Linear, and PEFT's SHiRA knows no other;"
            " train it whole ('all'), leave it out, or sft.save_delta"
        )
    return math.ceil(part.entries / sum(part.matrix_shape))


def _tensors(module: str, part: Part, count: int) -> dict[str, torch.Tensor]:
    """Values and indices of one layer, filled up to `count` entries with zeros at (0, 0)."""
    positions, change = sorted_positions(part), in_order(part, change_of(part))
    values = torch.zeros(count, dtype=torch.float32, device="cpu")
    values[: len(change)] = change
    indices = torch.zeros(2, count, dtype=torch.int32, device="cpu")
    indices[0, : len(change)] = (positions // part.matrix_shape[1]).int()
    indices[1, : len(change)] = (positions % part.matrix_shape[1]).int()
    return {f"{PREFIX}{module}.shira_weight": values, f"{PREFIX}{module}.shira_indices": indices}


def load_shira(folder: str | bytes | os.PathLike, base: nn.Module) -> Delta:
    """The SHiRA adapter in `folder`, saved by PEFT, as a delta of `base`, the model that it is for.

    Raises ValueError, KeyError or OSError, naming file and tensor, for a broken or foreign one.
    """
    config, tensors = read_adapter(folder, "SHIRA")
    entries = {}
    for key in [key for key in tensors if key.endswith(".shira_weight")]:
        module = module_of(key)
        added = tensors.pop(key)
        indices = tensors.pop(f"{module}.shira_indices", None)
        if indices is None or indices.dim() != 2 or len(indices) != 2 or added.dim() != 1:
            raise ValueError(f"path: {folder!r} does not say where the entries of {module!r} are")
        name = f"{module}.weight"
        rows, columns = indices.long()
        shape = places.matrix_of(base, name).shape
        if len(columns) and (columns.min() < 0 or columns.max() >= shape[1]):
            raise ValueError(f"path: {folder!r} names columns that {name!r} does not have")
        entries[name] = rows * shape[1] + columns, added
    return delta_of_changes(base, entries, tensors, config)
