"""recompute: activations of a model's layers are computed again in the backward, not held."""

import functools
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..annotations import AnyModule
from .untouched import Untouched


def members_of_lists(model: nn.Module) -> dict[str, nn.Module]:
    """{name: module} of the members of every nn.ModuleList that is in no other one.

    Such as a transformer's blocks.
    """
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    found = {}
    for name in lists:
        if not any(name.startswith(f"{other}.") for other in lists):
            members: AnyModule = model.get_submodule(name)
            for number, member in enumerate(members):
                found[f"{name}.{number}".lstrip(".")] = member
    return found


def check_can_recompute(model: nn.Module) -> None:
    """Raise ValueError for a model without layers in a list."""
    if not members_of_lists(model):
        raise ValueError(
            "recompute: the model has no nn.ModuleList whose members could be computed again; use"
            " its own checkpointing, or smaller batches"
        )


def recompute(model: nn.Module, saved: Untouched) -> None:
    """Have every member of the model's lists checkpointed, until `saved` puts all back.

    Caches of keys and values are off meanwhile: to compute a layer again would write to them again.
    """
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", None) is True:
            saved.also(functools.partial(setattr, config, "use_cache", True))
            config.use_cache = False
    for module in members_of_lists(model).values():
        module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False)
