"""Rows of CSV, JSON lines and text files."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ..texts import did_you_mean
from .chats import checked_chat
from .config import FILE_KINDS, Config
from .locating import located
from .misuse import Misuse
from .showing import say
from .tables import absent, read_table

Row = dict[str, Any]  # {column: text, or a chat}
VALIDATION = "validation.jsonl"  # in the folder of a run: what was held out


@dataclass
class Rows:
    """What a run learns from, and what it is judged by."""

    train: list[Row]
    validation: list[Row]


def read_rows(config: Config) -> Rows:
    """The rows of a config's files, with the columns that its task needs.

    A share to hold out is drawn by `training.seed`. Raises Misuse for a file that is none, lacks a
    column, or holds too little.
    """
    data = config.data
    rows = read_file(data.train, columns_of(config.task, data), "data.train", data.where)
    if isinstance(data.validation, float):
        random.Random(config.training.seed).shuffle(rows)
        rows = rows[: data.limit]
        held = int(len(rows) * data.validation)
        if data.validation and not held:
            raise Misuse(
                f"data.validation: {data.validation} of the {len(rows)} rows of"
                f" {str(data.train)!r} is none; give a larger share, a file of its own, or 0"
            )
        return Rows(rows[held:], rows[:held])
    held_out = read_file(
        data.validation, columns_of(config.task, data), "data.validation", data.where
    )
    return Rows(rows[: data.limit], held_out)


def columns_of(task: str, names: Any) -> dict[str, str]:
    """{key of the config: column} that a task needs.

    names: has the attributes text, label, prompt and messages. Raises Misuse for a column that the
    task does not know.
    """
    is_classes = task == "text-classification"
    for key in ("prompt", "messages"):
        if is_classes and getattr(names, key) is not None:
            raise Misuse(
                f"data.{key}: {getattr(names, key)!r}, and the task is {task!r}, which has no such"
                " column; leave it out, or say `task: causal-lm`"
            )
    if names.messages is not None:
        if names.prompt is not None:
            raise Misuse(
                f"data.prompt: {names.prompt!r}, and data.messages is {names.messages!r}; a chat"
                " holds its prompts: leave one out"
            )
        return {"data.messages": names.messages}
    columns = {"data.text": names.text}
    if is_classes:
        columns["data.label"] = names.label
    elif names.prompt is not None:
        columns["data.prompt"] = names.prompt
    return columns


def read_file(
    path: Path, columns: dict[str, str], key: str, where: dict[str, Any] | None = None
) -> list[Row]:
    """The rows of a file, each {column: text or chat}.

    columns: {key of the config: column}. key: what of the config names the file. where: {column:
    value} of the rows to take; all of them by default. Rows without text are left out, and how many
    were is said. Raises Misuse for what is no such file, or a row that lacks something.
    """
    path = located(path, key)
    kind = path.suffix.lower()
    if kind not in FILE_KINDS:
        raise Misuse(
            f"{key}: {str(path)!r} ends in {path.suffix!r}; a file in"
            f" {', '.join(FILE_KINDS)} is expected"
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            read = _wanted(path, file, columns, key, where or {})
    except FileNotFoundError:
        raise Misuse(f"{key}: there is no file {str(path)!r}; check the path") from None
    except OSError as error:
        raise Misuse(f"{key}: {str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise Misuse(
            f"{key}: {str(path)!r} is no {kind.removeprefix('.')} file in UTF-8: {error}; save it"
            " as UTF-8"
        ) from None
    kept = [row for row in read if _has_text(row, columns)]
    if not kept:
        such = "no rows with text" if not where else f"no rows with text where {where}"
        raise Misuse(f"{key}: {str(path)!r} holds {such}; give a file that does")
    if len(kept) < len(read):
        say(f"{key}: {len(read) - len(kept)} of {len(read)} rows hold no text, and are left out")
    return kept


def _has_text(row: Row, columns: dict[str, str]) -> bool:
    text = columns.get("data.text")
    return text is None or bool(row[text].strip())


def _wanted(
    path: Path, file: TextIO, columns: dict[str, str], key: str, where: dict[str, Any]
) -> list[Row]:
    rows = []
    for number, row in enumerate(_read(path, file, columns, key), 1):
        at = f"row {number} of {str(path)!r}"
        if _is_wanted(row, where, at):
            rows.append(_checked(row, columns, at))
    return rows


def _read(path: Path, file: TextIO, columns: dict[str, str], key: str) -> Iterator[dict[str, Any]]:
    kind = path.suffix.lower()
    if kind == ".txt":
        text = columns.get("data.text", "text")
        for paragraph in file.read().replace("\r\n", "\n").split("\n\n"):
            yield {text: paragraph.strip()}
    elif kind == ".jsonl":
        yield from _read_json_lines(path, file, key)
    else:
        yield from read_table(path, file, columns, key)


def _read_json_lines(path: Path, file: TextIO, key: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise Misuse(
                f"{key}: line {number} of {str(path)!r} is no JSON ({error}); one object a line is"
                " expected"
            ) from None
        if not isinstance(row, dict):
            raise Misuse(
                f"{key}: line {number} of {str(path)!r} is {row!r}; an object such as"
                ' {"text": "…", "label": "…"} is expected'
            )
        yield row


def _is_wanted(row: dict[str, Any], where: dict[str, Any], at: str) -> bool:
    for column, value in where.items():
        if column not in row:
            known = [name for name in row if isinstance(name, str)]
            raise Misuse(
                f"data.where.{column}: there is no {column!r} in {at}{did_you_mean(column, known)}"
            )
        if str(row[column]) != str(value):
            return False
    return True


def _checked(row: dict[str, Any], columns: dict[str, str], at: str) -> Row:
    return {column: _value(row, key, column, at) for key, column in columns.items()}


def _value(row: dict[str, Any], key: str, column: str, at: str) -> Any:
    """What a row has in a column, as text; a chat as it is."""
    name = key.partition(".")[2]
    if column not in row:
        raise absent(key, column, row, at)
    value = row[column]
    if name == "messages":
        return checked_chat(value, key, at)
    if isinstance(value, (list, dict)):
        raise Misuse(f"{key}: {column!r} is {value!r} in {at}; text is expected")
    is_none = value is None or value != value or str(value).strip().lower() in ("", "nan")
    if name == "label" and is_none:
        raise Misuse(
            f"{key}: {column!r} is empty in {at} ({value!r}); fill it in, or leave the row out"
        )
    return "" if value is None else str(value)


def write_rows(rows: list[Row], path: Path) -> None:
    """As JSON lines."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
