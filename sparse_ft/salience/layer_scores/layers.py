"""What counts as a layer: modules that patterns name, or the members of a model's lists."""

import fnmatch
from collections.abc import Iterable

from torch import nn

from ...messages import check_module, did_you_mean
from ...nn.sharded import BEFORE, refuse_sharded
from ..recompute import members_of_lists


def layers_of(model: nn.Module, layers: str | Iterable[str] | None) -> dict[str, nn.Module]:
    """{name: module}.

    layers: glob pattern(s) on module names; None for the members of every nn.ModuleList that is
    in no other one, such as a transformer's blocks.

    Raises ValueError for a pattern that matches nothing, and for a model without a list.
    """
    check_module("model", model)
    refuse_sharded(model, BEFORE)
    modules = {name: module for name, module in model.named_modules() if name}
    if layers is None:
        found = members_of_lists(model)
        if not found:
            raise ValueError("layers: the model has no nn.ModuleList; name its layers, layers='*'")
        return found
    found = {}
    for pattern in [layers] if isinstance(layers, str) else layers:
        names = fnmatch.filter(modules, pattern)
        if not names:
            near = did_you_mean(pattern.strip("*"), modules)
            raise ValueError(f"layers: {pattern!r} matches no module{near}")
        found |= {name: modules[name] for name in names}
    return found
