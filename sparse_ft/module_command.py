"""`python -m sparse_ft`: the diagnosis of this installation.

With `estimate`: what training a model will take. With `recipes`: the methods there are.
"""

import argparse
import json
import os
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

from .diagnosis import diagnosis
from .memory import estimate, side_by_side
from .recipes import get
from .recipes import list as every_recipe
from .salience.units import STRUCTURES


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sparse_ft",
        description="Print versions, hardware, and which implementation serves each op.",
    )
    commands = parser.add_subparsers(dest="command", metavar="command")
    _add_estimate(commands)
    _add_recipes(commands)
    arguments = parser.parse_args(argv)
    if arguments.command == "recipes":
        print(_recipes(arguments, parser))
    else:
        print(diagnosis() if arguments.command is None else _estimate(arguments, parser))
    return 0


def _add_recipes(commands: Any) -> None:
    what = "the published methods that sft.recipes has: a table, or the page of one"
    parser = commands.add_parser("recipes", help=what, description=f"Print {what}.")
    parser.add_argument("name", metavar="NAME", nargs="?", help="of a recipe")


def _recipes(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """The table, or a page, as text."""
    if arguments.name is None:
        return str(every_recipe())
    try:
        return get(arguments.name).page
    except ValueError as why:
        parser.error(f"NAME: {why}")


def _add_estimate(commands: Any) -> None:
    what = (
        "bytes that a training step of a model takes: all of it, LoRA, and a selection, side by"
        " side"
    )
    parser = commands.add_parser(
        "estimate", help=what, description=f"Print the {what}. Reads a config only, no weights."
    )
    parser.add_argument(
        "config",
        metavar="CONFIG.json",
        help="config of a transformers model: the file, or its folder",
    )
    parser.add_argument("--batch", type=_count, default=1, help="rows of a batch (1)")
    parser.add_argument("--sequence", type=_count, default=512, help="tokens of a row (512)")
    parser.add_argument(
        "--density",
        type=_share,
        default=0.01,
        help="share of each linear weight that trains (0.01)",
    )
    parser.add_argument(
        "--structure", choices=STRUCTURES, default="columns", help="what is selected (columns)"
    )
    parser.add_argument(
        "--lora",
        type=_count_or_none,
        default=8,
        metavar="RANK",
        help="rank of LoRA, 0: leave it out (8)",
    )
    parser.add_argument("--lean", action="store_true", help="the selection also with sft.lean")
    parser.add_argument(
        "--padded", action="store_true", help="rows of several lengths, so with an attention mask"
    )
    parser.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (the config's)"
    )


def _count(text: str) -> int:
    """A positive integer of the command line; argparse names the option where this raises."""
    return _integer(text, 1, "a positive integer")


def _count_or_none(text: str) -> int:
    return _integer(text, 0, "a non-negative integer")


def _integer(text: str, least: int, expected: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return number


def _share(text: str) -> float:
    """A number in (0, 1] of the command line."""
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"expected a share in (0, 1], got {text!r}")
    return share


def _estimate(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """The table, as text."""
    import torch

    config = read_config(arguments.config, parser)
    settings = dict(optimizer=arguments.optimizer, padded=arguments.padded)
    settings["dtype"] = arguments.dtype and getattr(torch, arguments.dtype)
    ours = f"{arguments.density:.3g} {arguments.structure}"
    selection = {"structure": arguments.structure, "density": arguments.density}
    wanted = {
        "full": (None, False),
        f"LoRA r{arguments.lora}": ({"lora": arguments.lora}, False),
        ours: (selection, False),
    }
    if not arguments.lora:
        del wanted["LoRA r0"]
    if arguments.lean:
        wanted[f"{ours}, lean"] = selection, True
    found, notes = {}, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for label, (plan, lean) in wanted.items():
            try:
                found[label] = estimate(
                    config, plan, arguments.batch, arguments.sequence, lean=lean, **settings
                )
            except ImportError as why:
                notes.append(f"{label}: left out, {why}")
            except Exception as why:  # whatever a config makes its model's class say
                parser.error(
                    f"CONFIG.json: {arguments.config!r} gives no model to train: {_line(why)}"
                )
    head = f"a training step, batch {arguments.batch} × {arguments.sequence}, {arguments.optimizer}"
    return "\n".join([head, side_by_side(found), *notes])


class Complains(Protocol):
    """What is told of a wrong argument: argparse's parser, or who else does not return."""

    def error(self, message: str) -> NoReturn: ...


def read_config(path: str, parser: Complains) -> Any:
    """The transformers config at `path`.

    Runs no code of the config's own and asks nobody for anything. `parser.error` is told what is
    wrong with it.
    """
    try:
        from transformers import CONFIG_MAPPING, AutoConfig
    except ImportError:
        parser.error("estimate needs transformers; pip install transformers")
    described = _described(path, parser)
    kind = described.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        own = (
            "; it asks to run code of its own (auto_map), which estimate does not do"
            if "auto_map" in described
            else ""
        )
        parser.error(
            f"CONFIG.json: {path!r} has a model_type that transformers does not know, {kind!r}{own}"
        )
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except Exception as why:  # whatever its numbers make the config's class say
        parser.error(f"CONFIG.json: {path!r} is no config of a {kind!r}: {_line(why)}")


def _described(path: str, parser: Complains) -> dict[str, Any]:
    """What the JSON file at `path`, or config.json in the folder, holds."""
    if not os.path.exists(path):
        parser.error(f"CONFIG.json: no file or folder {path!r}")
    name = os.path.join(path, "config.json") if os.path.isdir(path) else path
    try:
        with open(name, encoding="utf-8") as file:
            described = json.load(file)
    except (OSError, ValueError, RecursionError) as why:
        parser.error(f"CONFIG.json: {name!r} is not a JSON file: {_line(why)}")
    if not isinstance(described, dict):
        parser.error(
            f"CONFIG.json: expected an object in {name!r}, got a {type(described).__name__}"
        )
    return described


def _line(error: BaseException) -> str:
    """A message on one line, as far as one reads it; the class of an error that has none."""
    return " ".join(str(error).split())[:400] or type(error).__name__
