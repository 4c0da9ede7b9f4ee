"""start_from: trained entries begin at what they were before the base was quantised."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..messages import described, did_you_mean
from .module import quantised_in


def start_from(model: nn.Module, weights: Mapping[str, Any]) -> nn.Module:
    """Give the selected entries of quantised layers the values that `weights` hold there. Returns
    the model.

    `sft.convert` starts from what the quantised weights hold, which is rounded; weak columns (Lee
    et al., 2024, OWQ) are those that were never rounded. model: converted. weights: {parameter
    name: tensor [out, in]} of the base in full precision, as its `state_dict()` has them, or an
    `sft.Delta` of the same selections, to go on from where it ended; what is not of a quantised
    layer is not looked at. Pretrained values that `origin=True` keeps stay those
    of the quantised base. Raises ValueError where one is missing or has another shape; nothing has
    changed then.
    """
    found = []
    for layer in quantised_in(model):
        state = layer._sparse_ft_state
        name = state.label
        if name not in weights:
            near = did_you_mean(name, list(weights))
            raise ValueError(f"weights: it has no {name!r}, which trains over its codes{near}")
        values = layer._parameters["values"]
        found.append((values, _values_in(weights[name], name, state).to(values)))
    with torch.no_grad():
        for values, new in found:
            values.copy_(new)
    return model


def _values_in(what: Any, name: str, state: Any) -> torch.Tensor:
    """What a weight [out, in], or the part of a delta, has for the selected entries of `name`."""
    selection, shape = state.selection, state.matrix_shape
    if not isinstance(what, torch.Tensor):
        if what.selection != selection:
            raise ValueError(
                f"weights: the delta's {name!r} is of another selection than the one that trains"
                " here; sft.convert(model, delta.plan)"
            )
        return what.values
    if tuple(what.shape) != shape:
        raise ValueError(f"weights: expected shape {shape} for {name!r}, got {described(what)}")
    return selection.to(what.device).gather(what.detach().contiguous())
