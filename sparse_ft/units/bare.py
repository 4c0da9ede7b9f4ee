"""bare: a model as it was before `sft.convert` and `sft.lean`, on the same memory."""

import copy
from typing import Any

import torch
from torch import nn

from ..conversion import revert
from ..converted import record_of
from ..lean_modules import is_lean, unlean

WAY_OUT = (
    "ask sft.units before sft.convert and sft.lean, and hand what it finds to"
    " sft.select(units=…) or sft.reselect; or sft.revert(model) first"
)


def bare(model: nn.Module) -> nn.Module:
    """The model itself; of one that is converted or lean, a twin that is neither.

    The twin's parameters and buffers are tensors of its own on the same memory. Raises ValueError
    with the way out where there can be no twin (quantised or split parameters, modules that cannot
    be copied).
    """
    if not any(_is_changed(module) for module in model.modules()):
        return model
    try:
        twin = copy.deepcopy(model, _aliases(model))
        for module in list(twin.modules()):
            if record_of(module) is not None:
                revert(module)
            unlean(module)
    except Exception as error:
        raise ValueError(
            f"model: it is converted or lean already, and cannot be looked at without that:"
            f" {error}; {WAY_OUT}"
        ) from error
    return twin


def _is_changed(module: nn.Module) -> bool:
    return record_of(module) is not None or is_lean(module)


def _aliases(model: nn.Module) -> dict[int, Any]:
    """{id of a tensor: its alias}, by which `copy.deepcopy` copies no tensor.

    `.data` and not `detach`: what is written to an alias does not count as written to the tensor,
    for it is what was there.
    """
    found: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        if type(parameter) is not nn.Parameter:
            raise TypeError(f"{name!r} is a {type(parameter).__name__}")
        found[id(parameter)] = nn.Parameter(parameter.data, parameter.requires_grad)
    for buffer in model.buffers():
        if type(buffer) is torch.Tensor:
            found[id(buffer)] = buffer.data
    return found
