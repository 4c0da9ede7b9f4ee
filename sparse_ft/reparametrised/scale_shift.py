"""A factor and an offset for each output channel of a layer (SSF; Lian et al., 2022)."""

from typing import Any

import torch
from torch import nn

from ..annotations import AnyModule
from ..nn.reading import stored
from .part import Merged, Reparametrised, is_linear, is_stored_by_inputs, wide

CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d
TRANSPOSED = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
BATCH_NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d


class ScaleShift(Reparametrised):
    """`scale * y + shift` of a layer's output y, channel by channel.

    scale: [channels], one at first; shift: [channels], zero. On linear layers, convolutions and
    norms. Kept for backward: the layer's output. Merged into weight and bias of linear layers,
    convolutions, LayerNorm, GroupNorm and BatchNorm, whose bias must exist (linear layers and
    convolutions get one with `new_bias=True`); refused for others.
    """

    kind = "scale_shift"

    def __init__(self, new_bias: bool = False) -> None:
        super().__init__()
        self.new_bias = new_bias

    def prepare(self, layer: AnyModule) -> None:
        if stored(layer, "weight") is None:
            raise ValueError("ScaleShift: the layer has no weight, which tells its channels")
        channels = _channels(layer)
        self.scale = self.parameter(layer, channels, fill=1.0)
        self.shift = self.parameter(layer, channels)

    def after(self, layer: AnyModule, input: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        shape = [1] * output.dim()
        shape[_channel_dim(layer, output)] = -1
        # scale - 1 keeps in 16 bits what scale itself would lose
        change = (self.scale - 1).to(output.dtype).view(shape)
        return output + (output * change + self.shift.to(output.dtype).view(shape))

    def why_not_merged(self, layer: AnyModule) -> str:
        products = is_linear(layer) or isinstance(layer, CONVOLUTIONS)
        known = (*BATCH_NORMS, nn.LayerNorm, nn.GroupNorm)
        if not (products or isinstance(layer, known)):
            return f"a {type(layer).__name__} may do more with its output than weight and bias tell"
        if layer.bias is None and not (products and self.new_bias):
            return (
                "the layer has no bias, which the shift becomes"
                + "; ScaleShift(new_bias=True) gives it one" * products
            )
        return ""

    def merged(self, layer: AnyModule) -> Merged:
        weight, scale, shift = wide(layer.weight), wide(self.scale), wide(self.shift)
        by_inputs = is_linear(layer) and is_stored_by_inputs(layer)
        rows = weight.T if by_inputs else weight
        rows = rows * scale.view(-1, *[1] * (rows.dim() - 1))
        bias = shift if layer.bias is None else wide(layer.bias) * scale + shift
        return {"weight": rows.T if by_inputs else rows, "bias": bias}

    def told(self) -> dict[str, Any]:
        return {"kind": self.kind, "channels": self.scale.numel()}


def _channels(layer: AnyModule) -> int:
    weight = stored(layer, "weight")
    if is_linear(layer) and is_stored_by_inputs(layer):
        return weight.size(1)
    if isinstance(layer, TRANSPOSED):
        raise TypeError(f"ScaleShift: a {type(layer).__name__} is not supported")
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        raise TypeError(
            f"ScaleShift: it stands on what has channels, not on {type(layer).__name__}"
        )
    if weight.dim() > 2 and not isinstance(layer, CONVOLUTIONS):
        raise TypeError(f"ScaleShift: the channels of a {type(layer).__name__} are not known")
    return weight.size(0)


def _channel_dim(layer: nn.Module, output: torch.Tensor) -> int:
    """Which dimension of the output is that of the channels; the last unless torch says another."""
    spatial = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
    for kind, number in spatial.items():
        if isinstance(layer, kind):
            return output.dim() - 1 - number
    if isinstance(layer, (*BATCH_NORMS, nn.GroupNorm)):
        return 1
    return output.dim() - 1
