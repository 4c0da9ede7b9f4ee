"""Quantiser: how one format of quantised linear layers is read. Every subclass is known by what it
`REPLACES`.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from ..annotations import AnyModule

QUANTISERS: "list[type[Quantiser]]" = []  # the one that was written last is asked first
AT_ONCE = 1 << 17  # entries in a strip: half a MiB in fp32, 5 % slower than all at once
Strip = Callable[[slice], torch.Tensor]
FLOATS = torch.float16, torch.bfloat16, torch.float32, torch.float64
PLAIN = nn.Parameter, torch.Tensor


class Quantiser:
    """Reads the weight of one kind of quantised linear layer. A subclass serves from then on, in
    whatever file it is.

        class Halves(Quantiser):
            name = "halves"
            REPLACES = (MyLinear,)

            @staticmethod
            def dequantise(layer, dtype):
                return layer.codes.to(dtype) / 2

    name: in reports. OWN: attributes of the layer that are the format's, and go with it when the
    layer becomes a plain one. REPLACES: classes of layers, or of their weights, each as a class or
    as the dotted name under which its library makes it public (which is then not imported for it).
    The layer is one of `nn.Linear` or a subclass, and holds its codes in the parameter `weight`.
    """

    name: ClassVar[str] = ""
    REPLACES: ClassVar[tuple[str | type, ...]] = ()
    OWN: ClassVar[tuple[str, ...]] = ()
    tells_dtype: ClassVar[bool] = True  # whether `dtype` knows it

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if not cls.name or not cls.REPLACES:
            raise TypeError(
                f"{cls.__name__}: a Quantiser says its name and what it REPLACES, got"
                f" {cls.name!r} and {cls.REPLACES!r}"
            )
        QUANTISERS.insert(0, cls)

    @staticmethod
    def dequantise(layer: AnyModule, dtype: torch.dtype) -> torch.Tensor:
        """The weight of `layer` [out, in] in `dtype`, in memory of its own: it is written to.

        Called in every forward and every backward; the same numbers each time.
        """
        raise NotImplementedError

    @staticmethod
    def dtype(layer: AnyModule) -> torch.dtype:
        """What the weight was quantised from, where the layer tells; else float32."""
        dtype: torch.dtype = layer.weight.dtype
        return dtype if dtype in FLOATS else torch.float32

    @staticmethod
    def requantise(layer: AnyModule, weight: torch.Tensor) -> nn.Parameter:
        """A new parameter of the layer's own format that comes closest to `weight` [out, in].

        `layer` is left as it is; whoever calls puts the parameter in with `put`. For
        `sft.merge_quantised(model, requantise=True)`, which a quantiser without it refuses by name.
        """
        raise NotImplementedError

    @staticmethod
    def put(layer: AnyModule, weight: nn.Parameter) -> None:
        """Give `layer` a weight that `requantise` made."""
        layer.weight = weight

    @staticmethod
    def why_not(layer: AnyModule) -> str | None:
        """Why this layer cannot be read as it is, and the way out; None where it can."""
        return None

    @staticmethod
    def tensors(layer: AnyModule) -> Iterator[torch.Tensor]:
        """The plain tensors that hold the weight, always in one order: codes, scales, tables."""
        yield from plain_tensors(layer.weight)

    @classmethod
    def without_data(cls, layer: AnyModule) -> nn.Module | None:
        """What stands for `layer` in a dry run; None where a copy of it can go without data."""
        return None

    @staticmethod
    def load(layer: AnyModule, state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        """Take what only this format has out of a state_dict and into `layer`. Returns the rest.

        prefix: of the layer's own keys.
        """
        return dict(state_dict)


def quantiser_of(layer: nn.Module) -> type[Quantiser] | None:
    """The quantiser of a linear layer; None for a layer that is not quantised, or of no known
    kind.
    """
    if type(layer) is nn.Linear:  # most of them, in most models
        weight = layer._parameters.get("weight")
        if type(weight) in PLAIN:
            return None
    elif not isinstance(layer, nn.Linear):
        return None
    return next((known for known in QUANTISERS if _serves(known, layer)), None)


def _serves(quantiser: type[Quantiser], layer: nn.Module) -> bool:
    weight = layer._parameters.get("weight")
    for kind in quantiser.REPLACES:
        known = _class_of(kind) if isinstance(kind, str) else kind
        if known is not None and isinstance(layer, known):
            return True
        if known is not None and weight is not None and isinstance(weight, known):
            return True
    return False


def _class_of(dotted: str) -> type | None:
    """The class of this public name; None while nobody has imported its module."""
    module, _, name = dotted.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The ordinary tensors that a tensor consists of: itself, or those that a wrapper holds."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor.detach()
        return
    names, _ = flatten()
    for name in sorted(names):
        yield from plain_tensors(getattr(tensor, name))


def in_strips(layer: AnyModule, dtype: torch.dtype, strip_of: Strip) -> torch.Tensor:
    """The weight [out, in] of `layer` in `dtype`, made of strips of rows.

    For formats whose own way makes more tensors of the size of what it is asked for. strip_of: the
    rows of a slice, in any dtype.
    """
    shape = layer.out_features, layer.in_features
    dense = torch.empty(shape, dtype=dtype, device=layer.weight.device)
    rows = max(1, AT_ONCE // layer.in_features)
    for start in range(0, layer.out_features, rows):
        strip = slice(start, start + rows)
        dense[strip] = strip_of(strip)
    return dense


def known_kinds() -> str:
    """The quantisers by name, for messages."""
    return ", ".join(known.name for known in reversed(QUANTISERS))
