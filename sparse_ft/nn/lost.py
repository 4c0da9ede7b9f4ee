"""Selections that left a converted model with their module: who puts another one in its place takes them out, silently."""

import warnings
import weakref
from collections.abc import Iterable

from torch import nn

from .state import NAME

LOST = (
    "does not train any more, its module was replaced after sft.convert (resized?); sft.revert(model), convert again, and make "
    "a new optimiser"
)
_watched = weakref.WeakKeyDictionary()  # converted model -> the names of its selections


def watch(model: nn.Module, names: Iterable[str]) -> None:
    """Let the first step of each optimiser of `model` look whether the selections `names` are still there."""
    _watched[model] = tuple(names)


def unwatch(model: nn.Module) -> None:
    _watched.pop(model, None)


def lost_from(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Those of the selections `names` that no module of `model` holds any more."""
    held = {state.label for module in model.modules() if (state := module.__dict__.get(NAME)) is not None}
    return [name for name in names if name not in held]


def warn_of_lost(held: set[int]) -> None:
    """Say which selections were lost from the models that an optimiser trains. held: ids of its parameters."""
    for model, names in list(_watched.items()):
        if any(id(parameter) in held for parameter in model.parameters()):
            lost = lost_from(model, names)
            if lost:
                warnings.warn(f"{', '.join(lost[:3])}: {LOST}", stacklevel=5)


