"""Adapter folders as Hugging Face's PEFT writes and reads them.

`adapter_config.json` beside `adapter_model.safetensors`. Neither PEFT nor safetensors is needed.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .. import _tensorfile
from .._atomic import checked_path, naming_path, written_whole
from ..selection import Entries
from . import places
from .base import on_base
from .delta import Delta
from .fingerprint import fingerprint, written
from .part import Part
from .rest import rest_of, rest_of_matrix

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT's name for the model that it wraps


def write_adapter(
    folder: str | bytes | os.PathLike, config: Mapping[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    """Write an adapter; the folder is made where it is missing.

    The configuration comes last: who finds it finds the tensors.
    """
    folder = checked_path(folder)
    with naming_path(folder):
        os.makedirs(folder, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    _tensorfile.save_tensors(os.path.join(folder, WEIGHTS), tensors, {"format": "pt"})
    with written_whole(os.path.join(folder, CONFIG)) as file:
        file.write(json.dumps(config, indent=2, sort_keys=True).encode())


def read_adapter(
    folder: str | bytes | os.PathLike, kind: str
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The configuration of an adapter and its tensors, called as in the model.

    kind: PEFT's name of the method. Raises ValueError for an adapter of another one, OSError where
    the folder or a file of it is missing.
    """
    folder = checked_path(folder)
    with naming_path(os.path.join(folder, CONFIG)):
        with open(os.path.join(folder, CONFIG), "rb") as file:
            text = file.read()
    try:
        config = json.loads(text)
        method = config["peft_type"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"path: {folder!r} is no adapter of PEFT: {error!r}") from None
    if method != kind:
        raise ValueError(f"path: {folder!r} is an adapter of kind {method!r}, expected {kind!r}")
    tensors, _ = _tensorfile.load_tensors(os.path.join(folder, WEIGHTS))
    return config, {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def known_delta(source: Delta | nn.Module, base: nn.Module | None) -> Delta:
    """The delta that is to be exported, which knows its base. Raises ValueError where it does not,
    and for tensors that several modules share.

    source: a delta or a converted model. base: the base model, for one that does not know it.
    """
    delta = source if isinstance(source, Delta) else Delta.of(source)
    tied = set() if base is None else places.tied_in(base)
    for name, part in delta.items():
        if part.reader == places.TIED or name in tied:
            raise ValueError(
                f"source: {name!r} is shared by several modules, and an adapter of one would leave"
                " the others at the base; save it with sft.save_delta"
            )
    if base is not None:
        return on_base(delta, base)
    for name, part in delta.items():
        if part.selection is not None and part.origin is None:
            raise ValueError(
                f"base: an adapter holds what is added to the base, and nothing tells what that"
                f" holds of {name!r}; give base=, the model before training"
            )
    return delta


def change_of(part: Part) -> torch.Tensor:
    """What a part adds to its base, in fp32, shaped as its values, on the CPU."""
    return part.values.detach().cpu().float() - part.known_origin.detach().cpu().float()


def whole_tensors(delta: Delta) -> tuple[list[str], dict[str, torch.Tensor]]:
    """The modules of which a tensor changed whole, and these tensors as PEFT's modules_to_save."""
    modules: dict[str, None] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, part in delta.items():
        if part.selection is None:
            modules[module_of(name)] = None
            tensors[PREFIX + name] = part.values.detach().cpu()
    return list(modules), tensors


def module_of(name: str) -> str:
    """The module whose tensor is called `name`."""
    return name.rpartition(".")[0]


def delta_of_changes(
    model: nn.Module,
    entries: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    wholes: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
) -> Delta:
    """The delta of `model`, the base, that an adapter of this configuration stands for.

    entries: {name: (flat positions [n], what is added there [n])}; positions that stand twice add
    up. wholes: {name: the new tensor}. Added in fp32 (fp64 for fp64), rounded once.
    """
    parts = {}
    for name, (positions, added) in entries.items():
        parts[name] = _part_of_entries(model, name, positions, added)
    for name, new in wholes.items():
        parts[name] = _whole_part(model, name, new)
    of_base = config.get("base_model_name_or_path")
    return Delta(parts, rest_of(model, parts), of_base if isinstance(of_base, str) else None)


def _part_of_entries(
    model: nn.Module, name: str, positions: torch.Tensor, added: torch.Tensor
) -> Part:
    owner, attribute = places.owner_of(model, name)
    matrix = places.matrix_of(model, name).cpu()
    rows, columns = matrix.shape
    last = rows * columns
    if not len(positions) or positions.min() < 0 or positions.max() >= last:
        raise ValueError(f"path: an adapter's positions in {name!r} are not within its {last}")
    if len(positions) != len(added):
        raise ValueError(
            f"path: an adapter has {len(positions)} positions in {name!r}, and {len(added)} values"
        )
    wide = torch.promote_types(matrix.dtype, torch.float32)
    flat, back = positions.long().unique(return_inverse=True)
    total = torch.zeros(len(flat), dtype=wide, device="cpu").index_add(0, back, added.to(wide))
    selection = Entries(flat).on((rows, columns))
    origin = matrix.reshape(-1)[flat]
    values = (origin.to(wide) + total).to(matrix.dtype)
    rest = written(rest_of_matrix(matrix, selection, origin, fingerprint(matrix)))
    shape = tuple(places.tensor_of(owner, attribute).shape)
    reader = places.reader_of(owner, attribute)
    return Part(selection, values, shape, (rows, columns), origin, rest, reader)


def _whole_part(model: nn.Module, name: str, new: torch.Tensor) -> Part:
    owner, attribute = places.owner_of(model, name)
    old = places.tensor_of(owner, attribute).detach().cpu()
    if tuple(new.shape) != tuple(old.shape):
        raise ValueError(
            f"path: an adapter's {name!r} has shape {tuple(new.shape)}, and the model's"
            f" {tuple(old.shape)}"
        )
    return Part.whole(new.to(old.dtype), old.clone(), places.reader_of(owner, attribute))
