"""Patches in the formats of inference engines and their trainers.

vLLM's in-process patches, TRL's file, slime's folder.
"""

import json
import os
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import _tensorfile
from .._atomic import checked_path, naming_path, written_whole
from . import places, zstd
from .sending import Patch, Patches


def vllm_patches(made: Patches, cls: Callable[..., Any]) -> list[Any]:
    """`made` as vLLM's patches in checkpoint coordinates.

    cls: vLLM's `SparseWeightPatch` (sent by its `sparse_nccl` engine) or `CheckpointWeightPatch`
    (for `load_checkpoint_weight_patches`).

    Raises ValueError for a value that is not a number, which stands for "unchanged" there.
    """
    found = []
    for patch in made.with_indices():
        if patch.values.isnan().any():
            raise ValueError(
                f"patches: {patch.name!r} holds values that are not numbers; vLLM would leave the"
                " engine's as they are"
            )
        found.append(_as_vllm(patch, cls))
    return found


def _as_vllm(patch: Patch, cls: Callable[..., Any]) -> Any:
    fields = getattr(cls, "_fields", ())
    if "shape" in fields:
        return cls(
            name=patch.name,
            shape=patch.full_shape,
            dtype=patch.values.dtype,
            values=patch.values,
            indices=patch.indices,
        )
    return cls(
        name=patch.name, indices=patch.indices, values=patch.values, full_shape=patch.full_shape
    )


def save_trl_patch(made: Patches, path: str | bytes | os.PathLike) -> None:
    """Write `made` as the sparse safetensors file of TRL's asynchronous trainers.

    `NAME.val`, and `NAME.idx` as gaps in uint16 or uint32. TRL's own writer has bfloat16 values
    alone.
    """
    tensors, changed, total = {}, 0, 0
    for patch in _one_a_name(made):
        tensors[f"{patch.name}.val"] = patch.values.cpu()
        tensors[f"{patch.name}.idx"] = _gaps(patch.whole_indices)
        changed += len(patch.values)
        total += int(np.prod(patch.full_shape))
    told = {
        "format": "sparse_weight_patch",
        "version": "1",
        "sparse": "True",
        "model_version": str(made.version),
        "num_changed_params": str(len(tensors) // 2),
        "total_changed_elements": str(changed),
        "total_elements": str(total),
        "sparsity": str(1.0 - changed / max(total, 1)),
        "encoding": "gap_delta",
    }
    _tensorfile.save_tensors(path, tensors, told)


def _gaps(indices: torch.Tensor) -> torch.Tensor:
    gaps = np.diff(indices.cpu().numpy().astype(np.int64), prepend=-1) - 1
    width = np.uint16 if not len(gaps) or gaps.max() <= 0xFFFF else np.uint32
    return torch.from_numpy(gaps.astype(width))


def write_slime_version(model: nn.Module, made: Patches, folder: str | bytes | os.PathLike) -> str:
    """Write `made` below `folder` as a version of slime's delta checkpoints.

    Returns its folder, `weight_v000001` and so on.

    Encoding "overwrite": for each tensor the count of the bytes that are written over, their
    offsets in uint32, and the bytes, in a zstd frame (stored, not compressed); checksums (adler32)
    are of the whole new tensors, read from `model`. The index comes last: who finds it finds the
    rest. Raises OverflowError for a tensor of 4 GiB or more.
    """
    version = os.path.join(checked_path(folder), f"weight_v{made.version:06d}")
    with naming_path(version):
        os.makedirs(version, exist_ok=True)
    name_of_file = "model-00000-of-00001.safetensors"
    tensors, checksums = {}, {}
    for patch in _one_a_name(made):
        owner, attribute = places.owner_of(model, patch.name)
        weight = places.tensor_of(owner, attribute).detach()
        content = zstd.frame(_overwrite(patch))
        tensors[patch.name] = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
        checksums[patch.name] = f"{zlib.adler32(_bytes_of(weight)):08x}"
    if tensors:
        _tensorfile.save_tensors(os.path.join(version, name_of_file), tensors, checksums)
    index = {
        "metadata": {
            "version": f"{made.version:06d}",
            "base_version": f"{made.base_version:06d}",
            "delta_encoding": "overwrite",
            "compression_format": "zstd",
            "checksum_format": "adler32",
        },
        "weight_map": dict.fromkeys(tensors, name_of_file),
    }
    with written_whole(os.path.join(version, "model.safetensors.index.json")) as file:
        file.write(json.dumps(index).encode())
    return version


def _overwrite(patch: Patch) -> bytes:
    """Count (u4), offsets (u4 each) and bytes of what a patch writes over."""
    size = patch.values.element_size()
    indices = patch.whole_indices.cpu().numpy().astype(np.int64)
    if len(indices) and int(indices[-1] + 1) * size > 1 << 32:
        raise OverflowError(
            f"patches: {patch.name!r} has 4 GiB or more, and slime's offsets 32 bits"
        )
    offsets = (indices[:, None] * size + np.arange(size)).astype("<u4")
    count = np.array([offsets.size], "<u4")
    return count.tobytes() + offsets.tobytes() + bytes(_bytes_of(patch.values))


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _one_a_name(made: Patches) -> list[Patch]:
    """The patches with their indices; several of one tensor as one, as files hold them."""
    found: dict[str, Patch] = {}
    for patch in made.with_indices():
        other = found.get(patch.name)
        if other is not None:
            indices = torch.cat([other.whole_indices, patch.whole_indices])
            order = indices.argsort()
            values = torch.cat([other.values, patch.values])
            patch = patch._replace(indices=indices[order], values=values[order])
        found[patch.name] = patch
    return list(found.values())
