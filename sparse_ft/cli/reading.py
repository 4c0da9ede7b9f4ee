"""From a YAML file and flags to a `Config`; what is wrong with them, in words."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ..texts import did_you_mean
from .config import Config
from .misuse import Misuse, one_line
from .showing import say

NAME = "config.yaml"  # in the folder of a run


def read_config(path: Path | None, flags: Mapping[str, Any], sets: Iterable[str] = ()) -> Config:
    """The config in `path`, with what the command line says in the place of what the file says.

    path: a YAML file, a folder of a run, or None: flags say it all. flags: {dotted key: value},
    None where a flag was not given. sets: "dotted.key=value", as YAML. Raises Misuse, naming key,
    value and way out.
    """
    document = {} if path is None else read_yaml(path)
    _leave_out_of_another_method(document, flags.get("method"))
    for key, value in flags.items():
        if value is not None:
            _put(document, key, value)
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise Misuse(f"--set: expected key=value, as in training.batch_size=8, got {text!r}")
        _put(document, key, parsed(value, f"--set {key}"))
    return checked(document, path)


OF_A_METHOD = ("settings", "plan", "also", "lean")


def _leave_out_of_another_method(document: dict[str, Any], method: Any) -> None:
    """Where a flag names another method than the file, what the file says of its own is not meant.

    The learning rate neither: that of a selection is ten times that of full training.
    """
    before = document.get("method", "select")
    if method is None or method == before:
        return
    left = [name for name in OF_A_METHOD if document.pop(name, None)]
    training = document.get("training")
    if isinstance(training, dict) and training.pop("learning_rate", None) is not None:
        left.append("training.learning_rate")
    if left:
        say(
            f"--method {method}: what the file says of method {before!r} is left out:"
            f" {', '.join(left)}"
        )


def checked(document: Mapping[str, Any], path: Path | None = None) -> Config:
    """`document` as a config."""
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        where = f" ({path})" if path is not None else ""
        problems: dict[str, str] = {}  # of each key the first
        for each in error.errors(include_url=False):
            path_of = ".".join(map(str, _path(each["loc"])))
            problems.setdefault(path_of, _problem(each, document))
        raise Misuse(f"{'; '.join(problems.values())}{where}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; of a folder, that of its config.yaml."""
    file = path / NAME if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise Misuse(f"CONFIG: {str(file)!r}: {why}; examples/finetune.yaml is one") from None
    except UnicodeDecodeError:
        raise Misuse(
            f"CONFIG: {str(file)!r} is no text in UTF-8; a YAML file is expected"
        ) from None
    document = parsed(text, f"CONFIG: {str(file)!r}")
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise Misuse(
            f"CONFIG: {str(file)!r} holds a {type(document).__name__}; lines of `key: value` are"
            " expected"
        )
    return document


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, and a key that comes twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is a list or mapping; text is expected", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} comes twice; leave one", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parsed(text: str, what: str) -> Any:
    """`text` as YAML; `what` it is, for the message."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise Misuse(f"{what} is no YAML: {one_line(error)}") from None


def _put(document: dict[str, Any], key: str, value: Any) -> None:
    """Write `value` under a dotted key."""
    *path, last = key.split(".")
    at = document
    for name in path:
        inner = at.setdefault(name, {})
        if not isinstance(inner, dict):
            raise Misuse(f"{key}: {name!r} is {inner!r} and holds no keys; give it as a mapping")
        at = inner
    at[last] = value


def _problem(error: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """What pydantic found, with the value and the way out."""
    path = _path(error["loc"])
    key = ".".join(map(str, path))
    if error["type"] == "extra_forbidden":
        return f"{key}: there is no such key{_nearest(path)}"
    if error["type"] == "missing":
        flag = {"data": " --train FILE or", "model": " --model FOLDER or"}.get(
            key.split(".")[0], ""
        )
        return f"{key}: it is missing; give{flag} a line `{path[-1]}: …` in the config"
    value = _value(document, path)
    return f"{key}: {_expected(error, path)}, got {value!r}"


def _path(loc: Iterable[Any]) -> list[Any]:
    """The keys of a place; what pydantic adds of the kinds that it tried is left out."""
    path: list[Any] = []
    for name in loc:
        is_below = not path or _kind(path) is not None or isinstance(name, int)
        if not is_below:
            break
        path.append(name)
    return path


def _kind(path: list[Any]) -> type[BaseModel] | None:
    """The part of the config at `path`; None where that is no part."""
    kind: Any = Config
    for name in path:
        field = kind.model_fields.get(name)
        kind = None if field is None else field.annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return None
    return kind


def _fields(path: list[Any]) -> list[str]:
    kind = _kind(path)
    return [] if kind is None else list(kind.model_fields)


def _nearest(path: list[Any]) -> str:
    """Where an unknown key belongs, or what is near it."""
    name = str(path[-1])
    known = _fields(path[:-1])
    for part in ("data", "training"):
        if len(path) == 1 and name in _fields([part]):
            return f"; it belongs under `{part}:`"
    if len(path) > 1 and name in Config.model_fields:
        return f"; it belongs at the top of the file, not under `{path[0]}:`"
    return did_you_mean(name, known)


def _value(document: Any, path: Iterable[Any]) -> Any:
    for name in path:
        try:
            document = document[name]
        except (KeyError, IndexError, TypeError):
            return document
    return document


_LIMITS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_KINDS = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "invalid_key": "text as a key, in quotes",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
    "dict_type": "lines of `key: value`",
    "model_type": "lines of `key: value`",
}


def _expected(error: Mapping[str, Any], path: list[Any]) -> str:
    """The kind of value that belongs there."""
    kind = error["type"]
    if kind == "literal_error":
        field = _kind(path[:-1]).model_fields[path[-1]]  # type: ignore[union-attr]
        return f"expected {' or '.join(map(repr, get_args(field.annotation)))}"
    if kind in _LIMITS:
        bound, words = _LIMITS[kind]
        return f"expected {words} {error['ctx'][bound]}"
    if kind == "value_error":  # of config.py, which says what belongs there
        return f"expected {error['ctx']['error']}"
    return f"expected {_KINDS.get(kind, error['msg'])}"
