"""Weights of torchao: linear layers of torch's own class, whose weight is a tensor of another."""

import importlib
from typing import Any

import torch
from torch import nn

from ...annotations import AnyModule
from ..quantiser import Quantiser, in_strips

FEATURES_AT_ONCE = 256  # that a weight without `dequantize` is asked for in one product


class TorchAO(Quantiser):
    """int8, int4, float8 and whatever else is a `TorchAOBaseTensor`: those that dequantise
    themselves, and those that only multiply.

    Whether the layer's own forward rounds its input as well (dynamic activation quantisation), ours
    does not.
    """

    name = "torchao"
    REPLACES = ("torchao.utils.TorchAOBaseTensor",)
    OWN = ("extra_repr",)

    @staticmethod
    def dequantise(layer: AnyModule, dtype: torch.dtype) -> torch.Tensor:
        weight = layer.weight
        if not hasattr(weight, "dequantize"):
            return _by_products(layer, dtype)
        return in_strips(layer, dtype, lambda strip: weight[strip].dequantize())

    @staticmethod
    def requantise(layer: AnyModule, weight: torch.Tensor) -> nn.Parameter:
        quantization = importlib.import_module("torchao.quantization")
        own = layer.weight
        holder = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        holder.weight = nn.Parameter(weight.to(own.dtype), requires_grad=False)
        quantization.quantize_(nn.Sequential(holder), _config_of(own, quantization))
        return holder.weight


def _config_of(own: Any, quantization: Any) -> Any:
    """What makes a weight like `own`, by torchao's public configurations.

    Raises NotImplementedError for a kind that this does not know.
    """
    size = tuple(getattr(own, "block_size", ()))
    granularity = quantization.PerRow()
    if size and size[0] == 1 and size[1] < own.shape[1]:
        granularity = quantization.PerGroup(size[1])
    elif size and size[0] != 1:
        granularity = quantization.PerTensor()
    kind = type(own)
    if kind is getattr(quantization, "Int8Tensor", None):
        return quantization.Int8WeightOnlyConfig(granularity=granularity)
    if kind is getattr(quantization, "Float8Tensor", None):
        return quantization.Float8WeightOnlyConfig(weight_dtype=own.qdata.dtype)
    if kind is getattr(quantization, "IntxUnpackedToInt8Tensor", None):
        dtype = own.target_dtype
        if isinstance(granularity, quantization.PerRow):
            granularity = quantization.PerAxis(0)
        return quantization.IntxWeightOnlyConfig(weight_dtype=dtype, granularity=granularity)
    raise NotImplementedError


def _by_products(layer: AnyModule, dtype: torch.dtype) -> torch.Tensor:
    """The weight of a layer that packs it for one kernel alone, from products with unit vectors."""
    weight = layer.weight
    dense = torch.empty(layer.out_features, layer.in_features, dtype=dtype, device=weight.device)
    for start in range(0, layer.in_features, FEATURES_AT_ONCE):
        stop = min(start + FEATURES_AT_ONCE, layer.in_features)
        units = torch.zeros(
            stop - start, layer.in_features, dtype=weight.dtype, device=weight.device
        )
        units[:, start:stop].fill_diagonal_(1)
        dense[:, start:stop] = nn.functional.linear(units, weight).T
    return dense
