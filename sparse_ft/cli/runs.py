"""The folder of a run: what is in it, and whether a new run may use it."""

import json
import math
import shutil
import zipfile
from pathlib import Path
from typing import Any

import yaml

from .config import Config
from .misuse import Misuse
from .reading import NAME, read_config

RESULTS, PLAN, ADAPTER, MODEL = "results.json", "plan.safetensors", "adapter", "model"
DELTA = "delta.safetensors"
STATE, CHECKPOINT = "trainer_state.json", "checkpoint-"  # transformers' names
# What a run may change when it goes on: the schedule follows the new number of steps.
MAY_CHANGE = ("steps", "epochs", "log_every", "save_every", "evaluate_every", "keep")


def last_checkpoint(folder: Path, below: float = math.inf) -> Path | None:
    """The newest whole checkpoint of a run after fewer than `below` steps; None: there is none."""
    found = {}
    for each in folder.glob(f"{CHECKPOINT}*"):
        number = each.name.removeprefix(CHECKPOINT)
        if number.isdecimal() and int(number) < below and _is_whole(each):
            found[int(number)] = each
    return found[max(found)] if found else None


def step_of(checkpoint: Path) -> int:
    """How many steps the run had done."""
    return int(checkpoint.name.removeprefix(CHECKPOINT))


def _is_whole(checkpoint: Path) -> bool:
    """transformers writes the state last; a full disk may have cut what it wrote before."""
    try:
        state = json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError):
        return False
    tensors = checkpoint.glob("*.safetensors")
    pickled = checkpoint.glob("*.pt")
    is_read = all(map(_is_tensor_file, tensors)) and all(map(zipfile.is_zipfile, pickled))
    return is_read and isinstance(state, dict) and "global_step" in state


def _is_tensor_file(path: Path) -> bool:
    """Whether its header is that of as many bytes as it has."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            return True
    except (SafetensorError, OSError):
        return False


def check_unfinished(config: Config, at: Path | None, steps: int) -> None:
    """Raise Misuse where a run has done all its steps, and has told what came of it."""
    if at is not None and step_of(at) >= steps and (config.output / RESULTS).exists():
        raise Misuse(
            f"--resume: the run in {str(config.output)!r} has done its {step_of(at)} steps, and"
            f" {steps} are asked for; ask for more with --steps N or --epochs X, or begin anew with"
            " --overwrite"
        )


def begin(config: Config, resume: bool, overwrite: bool) -> Path | None:
    """Where the run goes on, None for a new one. Raises Misuse where the folder says otherwise."""
    folder = config.output
    if folder.exists() and not folder.is_dir():
        raise Misuse(f"output: {str(folder)!r} is a file; give a folder, with --output FOLDER")
    last = last_checkpoint(folder)
    if resume and overwrite:
        raise Misuse("--overwrite: --resume was given, too; leave one out")
    if resume:
        return _resumed(config, last)
    is_used = last is not None or (folder / RESULTS).exists()
    if is_used and not overwrite:
        raise Misuse(
            f"output: {str(folder)!r} holds a run already; --resume goes on with it, --overwrite"
            " begins anew, --output FOLDER goes elsewhere"
        )
    return None


def _resumed(config: Config, last: Path | None) -> Path | None:
    folder = config.output
    if last is None:
        has_begun = (folder / NAME).is_file()
        if has_begun and not (folder / RESULTS).exists():
            return None  # it was ended before its first checkpoint
        raise Misuse(
            f"--resume: {str(folder)!r} holds no checkpoint; leave --resume out, or give the folder"
            " of the run with --output"
        )
    if not (folder / NAME).is_file():
        raise Misuse(
            f"--resume: {str(folder)!r} holds no {NAME}, so nobody knows what was trained; begin"
            " anew with --overwrite"
        )
    before = told(read_config(folder / NAME, {}))
    now = told(config)
    for part in (before, now):
        part.pop("output")
        for name in MAY_CHANGE:
            part["training"].pop(name)
    for key, (old, new) in _differing(before, now).items():
        raise Misuse(
            f"{key}: {new!r}, and the run in {str(folder)!r} was begun with {old!r}; a run goes on"
            " with what it began with: leave that out, or begin anew with --overwrite"
        )
    return last


def _differing(old: dict[str, Any], new: dict[str, Any], at: str = "") -> dict[str, Any]:
    """{dotted key: (old, new)}."""
    found: dict[str, Any] = {}
    for name in {**old, **new}:
        mine, yours = old.get(name), new.get(name)
        if isinstance(mine, dict) and isinstance(yours, dict):
            found |= _differing(mine, yours, f"{at}{name}.")
        elif mine != yours:
            found[f"{at}{name}"] = mine, yours
    return found


def told(config: Config) -> dict[str, Any]:
    """The config as what YAML and JSON hold."""
    return config.model_dump(mode="json")


def write_beginning(config: Config, overwrite: bool) -> None:
    """The config of a run that begins; with `overwrite` its checkpoints of before are gone."""
    folder = config.output
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for each in folder.glob(f"{CHECKPOINT}*"):
            shutil.rmtree(each, ignore_errors=True)
        for name in (RESULTS, PLAN, DELTA, "validation.jsonl"):
            (folder / name).unlink(missing_ok=True)
    text = yaml.safe_dump(told(config), sort_keys=False, allow_unicode=True)
    (folder / NAME).write_text(text, encoding="utf-8")
