"""drift: how far training has moved each layer (IST, FedSelect's layers)."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from ...quantised.quantiser import quantiser_of
from ..scores.weights import movement
from .layers import layers_of


def drift(
    model: nn.Module,
    base: Mapping[str, torch.Tensor] | nn.Module,
    *,
    layers: str | Iterable[str] | None = None,
) -> dict[str, float]:
    """{layer: ‖W − W_base‖ / ‖W_base‖} over all of a layer's parameters.

    base: the model before, or its state {parameter name: tensor}. layers: as in `total`. One
    parameter at a time. Raises ValueError or TypeError that name the argument.
    """
    moved = movement(base)
    before = dict(base.named_parameters()) if isinstance(base, nn.Module) else base
    found = {}
    for layer, module in layers_of(model, layers).items():
        distance = size = 0.0
        _refuse_quantised(layer, module)
        for name, parameter in module.named_parameters():
            whole = f"{layer}.{name}"
            step = moved.rate(whole, parameter.detach(), torch.Generator())
            distance += float(step.double().square().sum())
            size += float(before[whole].detach().double().square().sum())
        found[layer] = (distance / size) ** 0.5 if size else 0.0
    return found


def _refuse_quantised(layer: str, module: nn.Module) -> None:
    for name, part in module.named_modules():
        if quantiser_of(part) is not None:
            raise ValueError(
                f"model: {f'{layer}.{name}'.rstrip('.')!r} is quantised, and codes do not drift;"
                " sft.merge_quantised, or name other layers in layers="
            )
