"""Docstrings as pages: what they say of each argument stands in a paragraph of its own.

The house writes `density: share of what trains. budget: instead of it, …` as running text, which
is short in a source and long on a page.
"""

import re
from typing import Any

import griffe


def split(text: str, names: list[str]) -> str:
    """`text` with a paragraph before each `name: ` or `name, name: ` that begins a sentence."""
    if not names:
        return text
    name = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    told = re.compile(rf"(?:\A|(?<=\n\n)|(?<=[.;)]\s))((?:{name})(?:, (?:{name}))*): ")
    return told.sub(lambda found: f"\n\n**`{found[1]}`**: ", text)


class Arguments(griffe.Extension):
    """Does it to all functions, and to classes for what their `__init__` takes."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is None:
            return
        if obj.is_function:
            names = [each.name for each in obj.parameters]
        elif obj.is_class:
            init = obj.members.get("__init__")
            names = [each.name for each in init.parameters] if init is not None else []
            names += [each for each, member in obj.members.items() if member.is_attribute]
        else:
            return
        obj.docstring.value = split(obj.docstring.value, [each for each in names if each != "self"])
