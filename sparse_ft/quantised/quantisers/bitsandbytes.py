"""Layers of bitsandbytes: 4 bits with a scale a block (QLoRA, Dettmers et al., 2023), and 8 bits
with a scale a row (LLM.int8, Dettmers et al., 2022).
"""

import copy
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ...annotations import AnyModule
from ..quantiser import Quantiser, in_strips
from ..stand_in import StandIn

MOVE_IT = "move the model to its device first: model.to(device) quantises it"


class FourBit(Quantiser):
    """nf4 and fp4, with plain or nested scales."""

    name = "bitsandbytes 4-bit"
    REPLACES = ("bitsandbytes.nn.Params4bit",)
    OWN = (
        "quant_state",
        "quant_storage",
        "compute_dtype",
        "compute_type_is_set",
        "support_avx512bf16_for_cpu",
    )

    @classmethod
    def without_data(cls, layer: AnyModule) -> nn.Module | None:
        return StandIn(layer, cls)

    @staticmethod
    def why_not(layer: AnyModule) -> str | None:
        if layer.weight.quant_state is None:
            return f"its weight is not quantised yet; {MOVE_IT}"
        return None

    @staticmethod
    def dequantise(layer: AnyModule, dtype: torch.dtype) -> torch.Tensor:
        _unpack(layer)
        functional = importlib.import_module("bitsandbytes.functional")
        weight = layer.weight
        # The library's kernels know no float64.
        is_double = dtype == torch.float64
        state = copy.copy(weight.quant_state)
        state.dtype = torch.float32 if is_double else dtype
        return functional.dequantize_4bit(weight.data, state).to(dtype)

    @staticmethod
    def dtype(layer: AnyModule) -> torch.dtype:
        return layer.weight.quant_state.dtype

    @staticmethod
    def requantise(layer: AnyModule, weight: torch.Tensor) -> nn.Parameter:
        own = layer.weight
        made = type(own)(
            weight.to(own.quant_state.dtype),
            requires_grad=False,
            blocksize=own.blocksize,
            compress_statistics=own.compress_statistics,
            quant_type=own.quant_type,
            quant_storage=own.quant_storage,
        )
        return made.to(weight.device)  # which quantises it

    @staticmethod
    def put(layer: AnyModule, weight: Any) -> None:
        weight.module = layer
        layer.weight = weight
        layer.quant_state = weight.quant_state

    @staticmethod
    def tensors(layer: AnyModule) -> Iterator[torch.Tensor]:
        _unpack(layer)
        yield layer.weight.data
        parts = layer.weight.quant_state.as_dict()
        for name in sorted(parts):
            if isinstance(parts[name], torch.Tensor):
                yield parts[name]

    @staticmethod
    def load(layer: AnyModule, state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        of_state = f"{prefix}weight."
        own = {name: part for name, part in state_dict.items() if name.startswith(of_state)}
        rest = {name: part for name, part in state_dict.items() if name not in own}
        codes = rest.get(f"{prefix}weight")
        if own and codes is not None:
            # The scales go with their codes.
            made = type(layer.weight).from_prequantized(
                codes, own, requires_grad=False, device=layer.weight.device, module=layer
            )
            layer.weight = made
        return rest


def _unpack(layer: AnyModule) -> None:
    """Undo what a forward without gradients does to the codes on a CPU with bf16 instructions: it
    reorders them for a kernel. Taking a state_dict is the library's own way back.
    """
    if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        layer.state_dict()


class EightBit(Quantiser):
    """int8 rows. The layer's own forward rounds its input to 8 bits as well; ours does not."""

    name = "bitsandbytes int8"
    REPLACES = ("bitsandbytes.nn.Int8Params",)
    OWN = ("state", "index")
    tells_dtype = False

    @classmethod
    def without_data(cls, layer: AnyModule) -> nn.Module | None:
        return StandIn(layer, cls)

    @staticmethod
    def why_not(layer: AnyModule) -> str | None:
        if layer.weight.has_fp16_weights:
            return "it quantises anew in every forward (has_fp16_weights); load it with False"
        if layer.weight.dtype != torch.int8:
            return f"its weight is not quantised yet; {MOVE_IT}"
        return None

    @staticmethod
    def dequantise(layer: AnyModule, dtype: torch.dtype) -> torch.Tensor:
        scales = _scales(layer).float()[:, None] / 127
        codes = layer.weight.data
        return in_strips(layer, dtype, lambda strip: codes[strip] * scales[strip])

    @staticmethod
    def requantise(layer: AnyModule, weight: torch.Tensor) -> nn.Parameter:
        made = type(layer.weight)(weight, requires_grad=False, has_fp16_weights=False)
        return made.to(weight.device)

    @staticmethod
    def put(layer: AnyModule, weight: Any) -> None:
        layer.weight = weight
        layer.state.CB = layer.state.SCB = None

    @staticmethod
    def tensors(layer: AnyModule) -> Iterator[torch.Tensor]:
        yield layer.weight.data
        yield _scales(layer)

    @staticmethod
    def load(layer: AnyModule, state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        rest = dict(state_dict)
        rest.pop(f"{prefix}weight_format", None)
        scales = rest.pop(f"{prefix}SCB", None)
        if scales is not None:
            _scales(layer).copy_(scales)
        return rest


def _scales(layer: AnyModule) -> torch.Tensor:
    """The largest number of each row: of the weight until the layer's own forward has run."""
    of_weight = layer.weight.SCB
    return layer.state.SCB if of_weight is None else of_weight
