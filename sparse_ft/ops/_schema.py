"""What the schema string of an op says: its arguments, its results, and what it writes to."""

import re
from typing import NamedTuple

_ALIAS = re.compile(r"\(\w+!?\)")  # "(a!)" of "Tensor(a!)[]"


class Argument(NamedTuple):
    """One argument of an op."""

    name: str
    type: str  # "Tensor", "Tensor?", "Tensor[]", "float", …
    default: str | None  # as Python has it, too
    is_keyword: bool  # behind the *
    is_written: bool

    @property
    def is_tensor(self) -> bool:
        return self.type.startswith("Tensor")

    @property
    def is_optional(self) -> bool:
        return self.type.endswith("?")

    @property
    def is_list(self) -> bool:
        return "[" in self.type


class Schema(NamedTuple):
    """The schema of an op, taken apart."""

    name: str
    arguments: list[Argument]
    results: list[str]

    @property
    def written(self) -> list[Argument]:
        return [argument for argument in self.arguments if argument.is_written]


def parse(schema: str) -> Schema:
    """`Schema` of a string as `torch.library.define` takes it, whose results have names."""
    name, _, rest = schema.partition("(")
    listed, _, returned = rest.rpartition(" -> ")
    return Schema(name, _arguments(listed.removesuffix(")")), _results(returned))


def _arguments(listed: str) -> list[Argument]:
    arguments = []
    is_keyword = False
    for text in filter(None, listed.split(", ")):
        if text == "*":
            is_keyword = True
            continue
        declared, _, default = text.partition("=")
        type, _, name = declared.rpartition(" ")
        bare_type = _ALIAS.sub("", type)
        arguments.append(Argument(name, bare_type, default or None, is_keyword, "!" in type))
    return arguments


def _results(returned: str) -> list[str]:
    listed = returned.removeprefix("(").removesuffix(")").split(", ")
    return [result.rpartition(" ")[2] for result in filter(None, listed)]
