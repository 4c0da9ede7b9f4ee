"""Selections that stopped training silently: their module was replaced, or they were frozen."""

import warnings
import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn

from .state import NAME

LOST = (
    "its selection is lost, for its module was replaced after sft.convert (resized?): it trains"
    " whole or not at all; sft.revert(model), convert again, and make a new optimiser"
)
FROZEN = (
    "selected, but frozen since sft.convert (peft.get_peft_model freezes what is not its own), so"
    " no selection of this model trains; call requires_grad_(True) on their values, then make the"
    " optimiser. PEFT's save_pretrained saves adapters only: torch.save(model.state_dict(), path)"
    " saves the selection, and sft.load takes it"
)
ADAPTERS = (
    "model: it has adapters of PEFT, whose save_pretrained saves the adapters and not the selected"
    " entries; torch.save(model.state_dict(), path) saves both, and sft.load takes it"
)
_watched: Any = weakref.WeakKeyDictionary()  # converted model -> the names of its selections


def watch(model: nn.Module, names: Iterable[str]) -> None:
    """Let the first step of each optimiser of `model` look whether `names` are still selected."""
    _watched[model] = tuple(names)


def converted_models() -> list[nn.Module]:
    """Those that are watched."""
    # By a list of references, which is made at once: another thread may convert a model meanwhile.
    models = [reference() for reference in _watched.keyrefs()]
    return [model for model in models if model is not None]


def unwatch(model: nn.Module) -> None:
    """Undo `watch`."""
    _watched.pop(model, None)


def lost_from(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Those of the selections `names` that no module of `model` holds any more."""
    states = [module.__dict__.get(NAME) for module in model.modules()]
    held = {state.label for state in states if state is not None}
    return [name for name in names if name not in held]


def frozen_in(model: nn.Module) -> list[str]:
    """The selections of `model`, if none of them can train: somebody froze its parameters. Some
    frozen on purpose are no news.
    """
    found = [
        module
        for module in model.modules()
        if module.__dict__.get(NAME) is not None and "values" in module._parameters
    ]
    values = [module._parameters["values"] for module in found]
    if any(one is not None and one.requires_grad for one in values):
        return []
    return [module.__dict__[NAME].label for module in found]


def warn_of_lost(held: set[int]) -> None:
    """Say which selections were lost from the models that an optimiser trains, or frozen. held: ids
    of its parameters.
    """
    for model in converted_models():
        names = _watched.get(model, ())
        if any(id(parameter) in held for parameter in model.parameters()):
            for selections, what in ((lost_from(model, names), LOST), (frozen_in(model), FROZEN)):
                if selections:
                    more = f" and {len(selections) - 3} more" if len(selections) > 3 else ""
                    warnings.warn(f"{', '.join(selections[:3])}{more}: {what}", stacklevel=7)


def warn_of_adapters(model: nn.Module) -> None:
    """Say what PEFT's own saving leaves out, where it has put its adapters into a model that is
    converted now.
    """
    if getattr(model, "peft_config", None) and hasattr(model, "save_pretrained"):
        warnings.warn(ADAPTERS, stacklevel=3)
