"""Parameters that differ in the numbers of their layers only, told as one:
`model.layers.*.self_attn.q_proj.weight ×30`.
"""

import re
from collections.abc import Hashable, Iterable
from typing import NamedTuple

# "3", or the end of "encoder_layer_3"; the 1 of "fc1" tells layers apart
_NUMBER = re.compile(r"(?:^|(?<=_))\d+$")


class Family(NamedTuple):
    """label: one name for all, a star for each number that varies. names: the members, in order."""

    label: str
    names: list[str]


def families(names: Iterable[tuple[str, Hashable]]) -> list[Family]:
    """Group (name, kind): one family for names that differ in numbers only and are of one kind, in
    order of appearance.
    """
    groups: dict[Hashable, list[str]] = {}
    for name, kind in names:
        groups.setdefault((_without_numbers(name), kind), []).append(name)
    return [Family(_label(members), members) for members in groups.values()]


def _without_numbers(name: str) -> str:
    return ".".join(_NUMBER.sub("*", part) for part in name.split("."))


def _label(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    places = zip(*(name.split(".") for name in names))
    pattern = ".".join(
        parts[0] if len(set(parts)) == 1 else _NUMBER.sub("*", parts[0]) for parts in places
    )
    return f"{pattern} ×{len(names)}"
