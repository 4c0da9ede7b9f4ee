"""Weights that a model holds outside of its parameters too: who reads them there sends no gradient,
so that is said.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .._torch import FLAT_WEIGHTS
from .alias import SelectedParameter
from .selected import Selected
from .state import NAME

DEPTH = 3  # of containers in containers
OWN = {NAME, "_parameters", "_buffers", "_modules"}


def warn_of_held_apart(model: nn.Module) -> None:
    """Name each selected weight of a converted model that a list or another attribute of a module
    holds as well.
    """
    labels = {
        id(module._weight()): module._sparse_ft_state.label
        for module in model.modules()
        if isinstance(module, Selected)
    }
    for prefix, module in model.named_modules():
        if isinstance(module, SelectedParameter):
            continue
        for attribute, thing in module.__dict__.items():
            # Recurrent modules have such a list, in which a selected weight is replaced while they
            # run.
            if attribute in OWN or (isinstance(module, nn.RNNBase) and attribute == FLAT_WEIGHTS):
                continue
            for tensor in _tensors(thing, DEPTH):
                label = labels.pop(id(tensor), None)
                if label is not None:
                    warnings.warn(
                        f"{label}: `{f'{prefix}.{attribute}'.lstrip('.')}` holds it too, and who"
                        " reads it there sends no gradient to its selected entries; read it from"
                        " its module",
                        stacklevel=3,
                    )


def _tensors(thing: Any, depth: int) -> Iterator[torch.Tensor]:
    if isinstance(thing, torch.Tensor):
        yield thing
    elif depth and isinstance(thing, (list, tuple, set, Mapping)):
        for part in list(thing.values()) if isinstance(thing, Mapping) else thing:
            yield from _tensors(part, depth - 1)
