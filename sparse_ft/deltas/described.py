"""What the file of a delta says of each part, and the way back.

Every claim is checked against the tensors that are there.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..plan import describe, selection_of
from ..selection import Entries, Selection, rebuilt
from . import gaps
from .delta import Delta
from .part import Part

_WHOLE, _STANDARD = "all", (1, 1)


def index_of(name: str, part: Part) -> dict[str, torch.Tensor]:
    """The tensor of a file that says where the entries of a part are; none where all are meant."""
    if part.selection is None:
        return {}
    index = part.selection.index.cpu()
    if part.selection.kind != "entries":
        return {f"{name}.index": index}
    return {f"{name}.gaps": torch.from_numpy(gaps.encode(index.numpy()))}


def described(part: Part) -> dict:
    """What the JSON says of a part; what a reader can tell from the rest is left out."""
    told: dict[str, Any] = {"kind": _WHOLE if part.selection is None else part.selection.kind}
    told["shape"] = list(part.shape)
    if part.selection is not None:
        more = describe(part.selection)
        if part.selection.block_size != _STANDARD:
            told["block_size"] = more["block_size"]
        if part.matrix_shape != part.shape:
            told["matrix_shape"] = list(part.matrix_shape)
    if part.rest:
        told["rest"] = part.rest
    if part.reader != "linear":
        told["reader"] = part.reader
    return told


def read(tensors: dict[str, torch.Tensor], document: Mapping) -> Delta:
    """The delta that a file's `tensors` and its `document` are.

    Raises ValueError and others where they are none.
    """
    base, recipe = document["base"], document.get("recipe")
    for what in ("name", "rest"):
        if not isinstance(base[what], (str, type(None))):
            raise ValueError(f"base: expected {what} to be a string or null, got {base[what]!r}")
    parts = {}
    for name, told in document["parts"].items():
        parts[name] = _part(name, told, tensors)
    if tensors:
        raise ValueError(f"nothing says what its tensor {next(iter(tensors))!r} is")
    return Delta(parts, base["rest"], base["name"], recipe)


def _part(name: str, told: Mapping, tensors: dict[str, torch.Tensor]) -> Part:
    """The part that `told` describes.

    Its tensors are taken out of `tensors`, so that each serves one part.
    """
    kind, shape = told["kind"], _whole_numbers(f"{name}: shape", told["shape"])
    rest, reader = told.get("rest", ""), told.get("reader", "linear")
    if not isinstance(rest, str) or not isinstance(reader, str):
        raise ValueError(f"{name}: expected strings for rest and reader, got {rest!r}, {reader!r}")
    values, origin = tensors.pop(f"{name}.values"), tensors.pop(f"{name}.origin", None)
    if kind == _WHOLE:
        selection, expected, matrix_shape = None, shape, (1, values.numel())
    else:
        matrix_shape = _matrix_shape(name, told, shape)
        selection = _selection(name, told, values, matrix_shape, tensors)
        expected = tuple(selection.values_shape(matrix_shape))
        if not values.is_floating_point():
            raise ValueError(f"{name}.values: expected floating-point numbers, got {values.dtype}")
    _check_like(f"{name}.values", values, expected, values.dtype)
    if origin is not None:
        _check_like(f"{name}.origin", origin, expected, values.dtype)
    return Part(selection, values, shape, matrix_shape, origin, rest, reader)


def _selection(
    name: str,
    told: Mapping,
    values: torch.Tensor,
    matrix_shape: tuple[int, int],
    tensors: dict[str, torch.Tensor],
) -> Selection:
    if told["kind"] != "entries":
        told = {"block_size": list(_STANDARD), **told, "matrix_shape": list(matrix_shape)}
        return selection_of(told, tensors.pop(f"{name}.index"))
    if values.dim() != 1 or not len(values):
        raise ValueError(f"{name}.values: expected [n] with n > 0, got {tuple(values.shape)}")
    packed = tensors.pop(f"{name}.gaps")
    bound = matrix_shape[0] * matrix_shape[1]
    index = gaps.decode(packed.numpy(), len(values), bound)  # sorted, unique and within the matrix
    last = int(index[-1])
    return rebuilt(Entries, torch.from_numpy(index), _STANDARD, last, matrix_shape)


def _matrix_shape(name: str, told: Mapping, shape: tuple[int, ...]) -> tuple[int, int]:
    matrix = _whole_numbers(f"{name}: matrix_shape", told.get("matrix_shape", list(shape)))
    if len(matrix) != 2 or 0 in matrix or math.prod(matrix) != math.prod(shape):
        raise ValueError(f"{name}: matrix {matrix} is not its tensor of shape {shape}")
    return matrix


def _whole_numbers(what: str, numbers: Any) -> tuple[int, ...]:
    if type(numbers) is not list or len(numbers) > 64:
        raise ValueError(f"{what}: expected a list of numbers, got {str(numbers)[:60]}")
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
        raise ValueError(f"{what}: expected numbers in [0, 2^63), got {str(numbers)[:60]}")
    return tuple(numbers)


def _check_like(
    what: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype:
        raise ValueError(
            f"{what}: expected {tuple(shape)} {dtype}, got {tuple(tensor.shape)} {tensor.dtype}"
        )
