"""Plans by pattern: which parameters of a model a glob means, which rows or columns of them."""

import fnmatch
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from .matrices import shape_of_matrix
from .messages import did_you_mean
from .selection import Columns, Entries, Rows, Selection

# At the end of a pattern: "[:100]", "[-8:]", "[:, 3:5]". Of other brackets fnmatch makes a choice
# of letters.
_SLICES = re.compile(r"\[([-\d\s:,]*:[-\d\s:,]*)\]$")
ALL = "all"


class Pattern(NamedTuple):
    """A glob, and the slices of rows and of columns after it; None for all of them."""

    text: str
    glob: str
    rows: slice | None
    columns: slice | None


class Found(NamedTuple):
    """A parameter of a model, by all of its names; the first is the model's own."""

    names: list[str]
    parameter: torch.Tensor
    matrix_shape: Any  # (rows, columns); None for a scalar


def matched(model: nn.Module, patterns: Mapping[str, Any]) -> dict[str, Any]:
    """{parameter name: Selection | "all"} of what `patterns` mean in `model`; see `Plan.match`."""
    found = list(_parameters(model))
    chosen: dict[str, Any] = {}
    sliced: dict[str, str] = {}  # name -> the pattern whose slice it has
    for text, what in patterns.items():
        pattern = _pattern(text, what)
        meant = [each for each in found if any(_fits(pattern, name) for name in each.names)]
        if not meant:
            names = [name for each in found for name in each.names]
            near = did_you_mean(pattern.glob, names)
            raise KeyError(f"patterns: {text!r} matches no parameter of the model{near}")
        for each in meant:
            name = each.names[0]
            before = chosen.pop(name, None)
            other = sliced.pop(name, None)
            if what is None:
                continue
            chosen[name] = _selected(pattern, each, what)
            if pattern.rows is not None:
                sliced[name] = text
                if other is not None:
                    chosen[name] = _union(name, before, other, chosen[name], text)
    return chosen


def _union(name: str, before: Selection, other: str, now: Selection, text: str) -> Selection:
    """What two slices of one parameter mean together."""
    kind = type(now)
    if type(before) is not kind:
        raise ValueError(
            f"patterns: {other!r} and {text!r} both mean a part of {name!r}, in two ways"
            " (rows, columns, entries); give one selection for it"
        )
    lines = torch.cat([before.index, now.index]).unique()
    whole = kind(lines)
    return whole if now.matrix_shape is None else whole.on(now.matrix_shape)


def _parameters(model: nn.Module) -> Iterator[Found]:
    """Every parameter once, in the order of the model."""
    found: dict[int, Found] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for attribute, parameter in module._parameters.items():
            is_values = attribute == "values" and "_sparse_ft_state" in module.__dict__
            if parameter is None or is_values:
                continue
            name = f"{prefix}.{attribute}".lstrip(".")
            if id(parameter) not in found:
                is_matrix = parameter.dim() > 0
                shape = shape_of_matrix(module, attribute, parameter.shape) if is_matrix else None
                found[id(parameter)] = Found([], parameter, shape)
            found[id(parameter)].names.append(name)
    yield from found.values()


def _pattern(text: str, what: Any) -> Pattern:
    if not isinstance(text, str):
        raise TypeError(f"patterns: expected parameter names or globs, got {text!r}")
    if not (what is None or what == ALL or isinstance(what, Selection)):
        raise TypeError(
            f"patterns: expected a Selection, 'all' or None (leave out) for {text!r}, got {what!r}"
        )
    slices = _SLICES.search(text)
    if slices is None:
        return Pattern(text, text, None, None)
    if not (what is None or what == ALL):
        raise ValueError(
            f"patterns: {text!r} says which rows or columns, so it takes 'all' (of them), got"
            f" {what!r}"
        )
    parts = [_slice(text, part) for part in slices[1].split(",")]
    if len(parts) > 2:
        raise ValueError(f"patterns: {text!r}: expected [rows] or [rows, columns]")
    columns = parts[1] if len(parts) == 2 else None
    return Pattern(text, text[: slices.start()], parts[0], columns)


def _slice(text: str, part: str) -> slice:
    try:
        numbers = [int(number) if number.strip() else None for number in part.split(":")]
    except ValueError:
        numbers = []
    if not 2 <= len(numbers) <= 3:
        raise ValueError(f"patterns: {text!r}: expected slices as start:stop or start:stop:step")
    return slice(*numbers)


def _fits(pattern: Pattern, name: str) -> bool:
    return name == pattern.glob or fnmatch.fnmatchcase(name, pattern.glob)


def _selected(pattern: Pattern, found: Found, what: Any) -> Any:
    """What a pattern means of one parameter."""
    if pattern.rows is None:
        return what
    name = found.names[0]
    if found.matrix_shape is None:
        raise ValueError(f"patterns: {pattern.text!r}: {name!r} is a scalar, without rows")
    rows, columns = found.matrix_shape
    if found.parameter.dim() == 1 and pattern.columns is None:
        return Entries(_lines(pattern, pattern.rows, "entries", name, columns)).on((1, columns))
    lines = _lines(pattern, pattern.rows, "rows", name, rows)
    if pattern.columns is None:
        return Rows(lines).on(found.matrix_shape)
    across = _lines(pattern, pattern.columns, "columns", name, columns)
    if len(lines) == rows:
        return Columns(across).on(found.matrix_shape)
    if len(across) == columns:
        return Rows(lines).on(found.matrix_shape)
    flat = (lines[:, None] * columns + across).flatten()
    return Entries(flat).on(found.matrix_shape)


def _lines(pattern: Pattern, part: slice, kind: str, name: str, size: int) -> torch.Tensor:
    """The indices that a slice means of `size` rows or columns, ascending."""
    for end in (part.start, part.stop):
        if end is not None and not -size <= end <= size:
            raise IndexError(
                f"patterns: {pattern.text!r}: {end} is out of range for {name!r}, which has"
                f" {size} {kind}"
            )
    if part.step == 0:
        raise ValueError(f"patterns: {pattern.text!r}: a step of 0")
    lines = sorted(range(size)[part])
    if not lines:
        raise ValueError(f"patterns: {pattern.text!r} means none of the {size} {kind} of {name!r}")
    return torch.tensor(lines, device="cpu")
