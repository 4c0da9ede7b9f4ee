"""`sparse-ft finetune --keys`: every key of a config, its default, and what it means."""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from .config import Config

REQUIRED = "(needed)"


def keys(part: type[BaseModel] = Config, at: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted key, default, meaning) of each."""
    for name, field in part.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys(kind, f"{at}{name}.")
            continue
        default = (
            REQUIRED if field.is_required() else _told(field.get_default(call_default_factory=True))
        )
        choices = [each for each in get_args(kind) if isinstance(each, str)]
        among = f" ({', '.join(choices)})" if choices else ""
        yield f"{at}{name}", default, f"{field.description}{among}"


def _told(default: Any) -> str:
    """As YAML has it."""
    if default is None:
        return "-"
    if isinstance(default, bool):
        return str(default).lower()
    return str(default)


def show_keys() -> None:
    """As a table."""
    from .showing import show_table

    show_table("keys of a config", ("key", "default", "what it is"), list(keys()))
