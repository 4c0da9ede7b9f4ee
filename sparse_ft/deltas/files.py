"""save_delta and load_delta: a delta as a safetensors file, without pickle.

| tensor        | of                      | holds                                        |
|---------------|-------------------------|----------------------------------------------|
| `NAME.values` | every part              | its new values                               |
| `NAME.gaps`   | parts of single entries | their positions (`gaps.py`), uint8 or uint16 |
| `NAME.index`  | rows, columns, blocks   | the index of the selection, int32 or int64   |
| `NAME.origin` | parts that know it      | the base's values                            |

The metadata holds one JSON document under "sparse_ft": format and its version, library version,
base (its name, fingerprint of what the delta leaves alone), recipe, and of each part its kind,
shape and the fingerprint of its other entries.
"""

import json
import os
from typing import Any

from torch import nn

from .. import _tensorfile
from .._atomic import checked_path
from ..messages import described as told
from .card import save_card
from .delta import Delta
from .described import described, index_of, read

FORMAT, VERSION = "sparse_ft.delta", 1
FILE = "delta.safetensors"  # in a folder


def save_delta(
    model: nn.Module | Delta,
    path: str | bytes | os.PathLike,
    *,
    origin: bool = False,
    base_name: str | None = None,
    recipe: Any = None,
) -> Delta:
    """Write what trained in `model` to `path`; the file appears whole or not at all.

    model: one that `sft.convert` has converted, or a `Delta`. path: of the file, or an existing
    folder, which gets `delta.safetensors` and, where huggingface_hub is installed and the folder
    has none, a model card `README.md`. origin: keep the base's values too, where they are known
    (twice the size; for `alpha`, LoRA, merging without the base).
    base_name: what the card and the file call the base; default: the name that a Hugging Face model
    was loaded from. recipe: anything that JSON holds. Returns the delta.

    2 bytes an entry of a 16-bit model, and 1.0 to 2.0 for where it is (0.1 % to 5 % of a matrix).
    fp32 `values` over 16-bit weights are saved as the weights show them: to go on training bit for
    bit, save `model.state_dict()`. Raises ValueError, TypeError or OSError that name the argument.
    """
    if isinstance(model, Delta):
        delta = Delta(
            model,
            model.rest,
            model.base_name if base_name is None else base_name,
            model.recipe if recipe is None else recipe,
        )
    else:
        delta = Delta.of(model, base_name, recipe)
    if origin and not delta.has_origin:
        raise ValueError(
            "origin: True, and nothing tells what the base held; sft.convert(..., origin=True)"
            " keeps it, and so does sft.diff(base, trained)"
        )
    try:
        json.dumps(delta.recipe)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"recipe: expected what JSON holds, got {told(delta.recipe)} ({error})"
        ) from None
    path = checked_path(path)
    folder = path if os.path.isdir(path) else None
    _write(delta, os.path.join(path, FILE) if folder else path, origin)
    if folder:
        save_card(delta, folder)
    return delta


def load_delta(path: str | bytes | os.PathLike) -> Delta:
    """The delta that `save_delta` wrote to `path`, a file or a folder; on the CPU.

    Raises ValueError that names file and fault for a corrupt, truncated or foreign one, OSError
    where it cannot be read. Takes memory for what the file holds, and nothing that it only claims.
    """
    path = checked_path(path)
    file = os.path.join(path, FILE) if os.path.isdir(path) else path
    tensors, document = _tensorfile.load(file)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"path: {file!r} is not a delta of sparse_ft")
    if document.get("version") != VERSION:
        raise ValueError(
            f"path: {file!r} has version {document.get('version')!r} of the format, and this"
            f" release of sparse_ft reads {VERSION}; update it"
        )
    try:
        return read(tensors, document)
    except _tensorfile.FAULTS as error:
        raise ValueError(f"path: {file!r} holds a broken delta: {error}") from None


def _write(delta: Delta, path: str, origin: bool) -> None:
    from .. import __version__

    tensors, parts = {}, {}
    for name, part in delta.items():
        if not _tensorfile.holds(part.values.dtype):
            raise TypeError(f"{name}: a delta file holds no tensors of {part.values.dtype}")
        tensors[f"{name}.values"] = part.values
        if origin and part.origin is not None:
            tensors[f"{name}.origin"] = part.origin
        parts[name] = described(part)
        tensors |= index_of(name, part)
    base = {"name": delta.base_name, "rest": delta.rest}
    document = {
        "format": FORMAT,
        "version": VERSION,
        "library": __version__,
        "base": base,
        "recipe": delta.recipe,
        "parts": parts,
    }
    _tensorfile.save(path, tensors, document)
