"""Plan: what trains in a model, as a mapping from parameter name to a Selection or "all". Saved as
safetensors + JSON.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from . import _tensorfile
from .families import Family, families
from .matching import matched
from .selection import Selection
from .structures import SELECTIONS

ALL = "all"
_FORMAT = "sparse_ft.plan"
_VERSION = 1


class Plan(Mapping):
    """What trains: `{parameter name: Selection | "all"}`; parameters that are not listed are
    frozen. Immutable.

    `plan | {"classifier.weight": "all"}` gives a plan with more (or other) entries. Selections that
    were chosen on a matrix (`sft.select`, `sft.from_mask`, a converted model) know its shape, also
    from a file, and no other weight takes them. Raises TypeError for a name that is not a string or
    a value that is neither.

    left: {parameter name: why} of what `sft.select` passed over; `print(plan)` shows it, and
    nothing else looks at it.
    """

    def __init__(
        self,
        items: Mapping[str, Selection | str] | Iterable[tuple[str, Selection | str]] = (),
        left: Mapping[str, str] | None = None,
    ) -> None:
        try:
            self._items = dict(items)
        except (TypeError, ValueError):
            raise TypeError(
                f"plan: expected a mapping {{parameter name: Selection | 'all'}}, got {items!r}"
            ) from None
        for name, what in self._items.items():
            if not isinstance(name, str):
                raise TypeError(f"plan: expected parameter names, got {name!r}")
            if not (isinstance(what, Selection) or (isinstance(what, str) and what == ALL)):
                raise TypeError(f"plan: expected a Selection or 'all' for {name!r}, got {what!r}")
        self.left = {name: why for name, why in dict(left or {}).items() if name not in self._items}

    @classmethod
    def match(cls, model: nn.Module, patterns: Mapping[str, Selection | str | None]) -> "Plan":
        """The plan that `patterns` mean in `model`: {parameter name or glob, with or without a
        slice: what of it trains}.

        Plan.match(model, {
            "*.norm*": "all",
            "*embed_tokens.weight[32000:]": "all",  # these rows
            "*.down_proj.weight[:, :64]": "all",  # these columns
            "*.q_proj.weight": sft.Columns([0, 7]),
            "layers.0.*": None,  # left out, whatever a pattern above says
        })

        Globs are `fnmatch`'s, on dotted names, where a star takes dots, too. A slice [rows] or
        [rows, columns] at the end is one of the parameter's matrix (`sft.matrix_shape`; of a bias
        its entries) and goes with "all". Of two patterns that match a parameter the later counts,
        and of two slices both. A tied parameter is meant by each of its names, and planned under
        the first.

        Raises KeyError for a pattern that matches nothing, IndexError or ValueError for a slice
        that is out of range or empty, TypeError for what is no pattern or trains nothing.
        """
        return cls(matched(model, patterns))

    def __getitem__(self, name: str) -> Selection | str:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __or__(self, other: Any) -> "Plan":
        if not isinstance(other, Mapping):
            return NotImplemented
        return Plan({**self._items, **other}, {**self.left, **getattr(other, "left", {})})

    def __repr__(self) -> str:
        lines = [f"  {name!r}: {what!r}," for name, what in self._items.items()]
        return "\n".join(["Plan({", *lines, "})"])

    def __str__(self) -> str:
        """The plan in short: layers that differ in their number only share a line, and what was
        passed over has its own.
        """
        named = families((name, self._kind_of(name)) for name in self)
        lines = [(family.label, self._told(family)) for family in named]
        lines += [
            (family.label, f"left out: {self.left[family.names[0]]}")
            for family in families(self.left.items())
        ]
        width = max((len(label) for label, _ in lines), default=0)
        return "\n".join([self._head(), *(f"  {label:{width}}  {text}" for label, text in lines)])

    def _head(self) -> str:
        """How many parameters, and the share of the entries of those whose shape is known."""
        chosen, entries, known = 0, 0, 0
        for what in self._items.values():
            if isinstance(what, Selection) and what.matrix_shape is not None:
                chosen += what.nnz(what.matrix_shape)
                entries += math.prod(what.matrix_shape)
                known += 1
        share = (
            f"; of {known} weights {chosen:,} of {entries:,} entries ({chosen / entries:.2%})"
            if known
            else ""
        )
        return f"a plan for {len(self)} parameters{share}"

    def _kind_of(self, name: str) -> tuple:
        what = self._items[name]
        return (ALL,) if isinstance(what, str) else (what.kind, what.block_size, what.matrix_shape)

    def _told(self, family: Family) -> str:
        """What trains of each member: "4 of 384 columns", "8 to 12 blocks of 64 × 64"."""
        kind, *rest = self._kind_of(family.names[0])
        if kind == ALL:
            return "all"
        block_size, shape = rest
        counts = [len(self._items[name]) for name in family.names]
        few, many = min(counts), max(counts)
        number = f"{few:,}" if few == many else f"{few:,} to {many:,}"
        if shape is not None:
            lines = {"rows": shape[0], "columns": shape[1], "entries": shape[0] * shape[1]}
            number += f" of {lines[kind]:,}" if kind in lines else ""
        return f"{number} {kind}" + (
            f" of {block_size[0]} × {block_size[1]}" if kind == "blocks" else ""
        )

    def save(self, path: str | os.PathLike) -> None:
        """Write the plan to `path`, a safetensors file with a JSON document (no pickle); it appears
        whole or not at all.
        """
        tensors: dict[str, torch.Tensor] = {}
        plan: dict[str, Any] = {}
        for number, (name, what) in enumerate(self._items.items()):
            if isinstance(what, str):
                plan[name] = ALL
                continue
            tensors[f"index.{number}"] = what.index
            plan[name] = {**describe(what), "index": f"index.{number}"}
        _tensorfile.save(path, tensors, {"format": _FORMAT, "version": _VERSION, "plan": plan})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Plan":
        """The plan that `save` wrote. Raises ValueError, naming file and fault, for a corrupt,
        truncated or foreign one.
        """
        tensors, document = _tensorfile.load(path)
        if (
            not isinstance(document, dict)
            or document.get("format") != _FORMAT
            or document.get("version") != _VERSION
        ):
            raise ValueError(
                f"path: {str(path)!r} is not a plan that this version of sparse_ft reads (format"
                f" {_FORMAT!r}, version {_VERSION})"
            )
        try:
            return cls(_items(document["plan"].items(), tensors))
        except _tensorfile.FAULTS as error:
            raise ValueError(f"path: {str(path)!r} holds a broken plan: {error}") from None


def _items(
    plan: Iterable[tuple[str, Any]], tensors: dict[str, torch.Tensor]
) -> dict[str, Selection | str]:
    """{name: Selection | "all"} of what a file says. Each tensor is used once: a selection copies
    it, so that a small file that names one for every parameter would take any amount of memory."""
    items: dict[str, Selection | str] = {}
    used = set()
    for name, what in plan:
        if what == ALL:
            items[name] = ALL
            continue
        if what["index"] in used:
            raise ValueError(f"{name!r} has the index {what['index']!r} of another parameter")
        used.add(what["index"])
        items[name] = selection_of(what, tensors.pop(what["index"]))
    return items


def describe(selection: Selection) -> dict:
    """What a file says of a selection beside its index: strings and lists of integers."""
    described = {"kind": selection.kind, "block_size": list(selection.block_size)}
    if selection.matrix_shape is not None:
        described["matrix_shape"] = list(selection.matrix_shape)
    return described


def selection_of(what: dict, index: torch.Tensor) -> Selection:
    """The selection that `describe` described. Raises ValueError and others for what describes
    none.
    """
    cls: Any = SELECTIONS[what["kind"]]
    more = (tuple(what["block_size"]),) if cls.has_block_size else ()
    selection = cls(index, *more)
    shape = what.get("matrix_shape")  # files of selections that were written by hand have none
    if shape is None:
        return selection
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(type(n) is int and n > 0 for n in shape)
    ):
        raise ValueError(f"matrix_shape: expected two positive integers, got {shape!r}")
    if math.prod(shape) >= 1 << 63:
        raise ValueError(f"matrix_shape: expected less than 2^63 entries, got {shape!r}")
    rows, columns = shape
    return selection.on((rows, columns))
