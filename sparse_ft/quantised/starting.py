"""start_from: trained entries begin at what they were before the base was quantised."""

from collections.abc import Mapping

import torch
from torch import nn

from ..messages import described, did_you_mean
from .module import quantised_in


def start_from(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """Give the selected entries of quantised layers the values that `weights` hold there. Returns
    the model.

    `sft.convert` starts from what the quantised weights hold, which is rounded; weak columns (Lee
    et al., 2024, OWQ) are those that were never rounded. model: converted. weights: {parameter
    name: tensor [out, in]} of the base in full precision, as its `state_dict()` has them; what is
    not of a quantised layer is not looked at. Pretrained values that `origin=True` keeps stay those
    of the quantised base. Raises ValueError where one is missing or has another shape; nothing has
    changed then.
    """
    found = []
    for layer in quantised_in(model):
        state = layer._sparse_ft_state
        name, shape = state.label, state.matrix_shape
        if name not in weights:
            near = did_you_mean(name, list(weights))
            raise ValueError(f"weights: it has no {name!r}, which trains over its codes{near}")
        weight = weights[name].detach()
        if tuple(weight.shape) != shape:
            raise ValueError(
                f"weights: expected shape {shape} for {name!r}, got {described(weight)}"
            )
        values = layer._parameters["values"]
        matrix = weight.to(values.device).contiguous()
        found.append((values, state.selection.gather(matrix, dtype=values.dtype)))
    with torch.no_grad():
        for values, new in found:
            values.copy_(new)
    return model
