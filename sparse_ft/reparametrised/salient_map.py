"""A K x K map on the K salient output channels of a layer (SCT; Zhao et al., 2023)."""

from typing import Any

import torch

from ..annotations import AnyModule
from ..structures.index import as_index, check_order
from .part import Merged, Reparametrised, as_stored, check_linear, out_by_in, wide


class SalientMap(Reparametrised):
    """`y[K] + M @ y[K]` of a layer's output y [..., out], for chosen **output** channels K.

    channels: ascending numbers of output channels. values: M, [K, K], zero at first. Kept for
    backward: the chosen channels of the output. Merged into the rows K of weight and bias.
    """

    kind = "salient_map"

    def __init__(self, channels: Any) -> None:
        super().__init__()
        self.channels = as_index(channels, "[K]", 0).to(torch.int64)
        check_order(self.channels)

    def prepare(self, layer: AnyModule) -> None:
        check_linear(layer, "SalientMap: it")
        outputs = out_by_in(layer).size(0)
        if int(self.channels[-1]) >= outputs:
            raise IndexError(
                f"channels: {int(self.channels[-1])} is out of range for {outputs} output channels"
            )
        self.values = self.parameter(layer, len(self.channels), len(self.channels))
        self.channels = self.channels.to(self.values.device)

    def after(self, layer: AnyModule, input: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        chosen = output.index_select(-1, self.channels)
        change = torch.nn.functional.linear(chosen, self.values.to(output.dtype))
        return output.index_add(-1, self.channels, change.to(output.dtype))

    def why_not_merged(self, layer: AnyModule) -> str:
        return ""

    def merged(self, layer: AnyModule) -> Merged:
        weight, values = out_by_in(layer).clone(), wide(self.values)
        weight[self.channels] += values.to(weight.dtype) @ weight[self.channels]
        found = {"weight": as_stored(layer, weight)}
        if layer.bias is not None:
            bias = wide(layer.bias).clone()
            bias[self.channels] += values.to(bias.dtype) @ bias[self.channels]
            found["bias"] = bias
        return found

    def told(self) -> dict[str, Any]:
        return {"kind": self.kind, "channels": self.channels.tolist()}

    def _apply(self, *args: Any, **kwargs: Any) -> "SalientMap":
        super()._apply(*args, **kwargs)
        if self.values.device.type != "meta":
            self.channels = self.channels.to(self.values.device)
        return self
