"""Rows of CSV, JSON lines and text files."""

import csv
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..texts import did_you_mean
from .config import FILE_KINDS, Config
from .locating import located
from .misuse import Misuse

Row = dict[str, str]
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
    rows = read_file(data.train, columns_of(config), "data.train", data.where)
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
    held_out = read_file(data.validation, columns_of(config), "data.validation", data.where)
    return Rows(rows[: data.limit], held_out)


def columns_of(config: Config) -> dict[str, str]:
    """{key of the config: column} that its task needs."""
    data = config.data
    columns = {"data.text": data.text}
    if config.task == "text-classification":
        columns["data.label"] = data.label
    elif data.prompt is not None:
        columns["data.prompt"] = data.prompt
    return columns


def read_file(
    path: Path, columns: dict[str, str], key: str, where: dict[str, Any] | None = None
) -> list[Row]:
    """The rows of a file, each {column: text}; rows without text are left out.

    columns: {key of the config: column}. key: what of the config names the file. where: {column:
    value} of the rows to take; all of them by default.
    """
    path = located(path, key)
    if path.suffix not in FILE_KINDS:
        raise Misuse(
            f"{key}: {str(path)!r} ends in {path.suffix!r}; a file in"
            f" {', '.join(FILE_KINDS)} is expected"
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = []
            for number, row in enumerate(_read(path, file, columns), 1):
                at = f"row {number} of {str(path)!r}"
                if _is_wanted(row, where or {}, at):
                    rows.append(_checked(row, columns, at))
    except FileNotFoundError:
        raise Misuse(f"{key}: there is no file {str(path)!r}; check the path") from None
    except OSError as error:
        raise Misuse(f"{key}: {str(path)!r} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        kind = path.suffix.removeprefix(".")
        raise Misuse(f"{key}: {str(path)!r} is no {kind} file in UTF-8: {error}") from None
    kept = [row for row in rows if row[columns["data.text"]].strip()]
    if not kept:
        raise Misuse(f"{key}: {str(path)!r} holds no such rows with text; give a file that does")
    return kept


def _read(path: Path, file: Any, columns: dict[str, str]) -> Iterator[dict[str, Any]]:
    if path.suffix == ".txt":
        text = columns["data.text"]
        for paragraph in file.read().replace("\r\n", "\n").split("\n\n"):
            yield {text: paragraph.strip()}
    elif path.suffix == ".jsonl":
        yield from _read_json_lines(path, file)
    else:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        yield from reader


def _read_json_lines(path: Path, file: Any) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise Misuse(
                f"data: line {number} of {str(path)!r} is no JSON ({error}); one object a line is"
                " expected"
            ) from None
        if not isinstance(row, dict):
            raise Misuse(
                f"data: line {number} of {str(path)!r} is {row!r}; an object such as"
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
    for key, column in columns.items():
        name = key.partition(".")[2]
        if row.get(column) is None:
            known = [each for each in row if isinstance(each, str)]
            raise Misuse(
                f"{key}: there is no {column!r} in {at}{did_you_mean(column, known)}; say"
                f" `{name}: NAME` under `data:`, or --{name} NAME"
            )
        if key == "data.label" and not str(row[column]).strip():
            raise Misuse(f"{key}: {column!r} is empty in {at}; fill it in, or leave the row out")
    return {column: str(row[column]) for column in columns.values()}


def write_rows(rows: list[Row], path: Path) -> None:
    """As JSON lines."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
