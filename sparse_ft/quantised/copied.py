"""Codes that go along with a copy or a pickle of their module: a parameter of a library's own class
comes out of a pickle as an ordinary one otherwise.
"""

from typing import Any

import torch
from torch import nn

OF_ITS_MODULE = "module"  # where bitsandbytes' weights point back


class Codes:
    """Stands in for a weight in the state of a module. `parameter(module)` gives it back."""

    def __init__(self, kind: type, data: torch.Tensor, attributes: dict[str, Any]) -> None:
        self.kind = kind
        self.data = data
        self.attributes = attributes

    @classmethod
    def of(cls, weight: nn.Parameter) -> "Codes":
        """The codes of `weight`, and what its class keeps beside them."""
        attributes = {name: what for name, what in vars(weight).items() if name != OF_ITS_MODULE}
        return cls(type(weight), weight.data, attributes)

    def parameter(self, module: nn.Module) -> nn.Parameter:
        """A weight of the class that it was, of this module."""
        kind: Any = self.kind
        weight: nn.Parameter = kind(self.data, requires_grad=False)
        vars(weight).update(self.attributes)
        if hasattr(weight, OF_ITS_MODULE):
            weight.module = module  # type: ignore[attr-defined]
        return weight


def with_codes(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a module, for copy and pickle."""
    parameters = state["_parameters"]
    weight = parameters.get("weight")
    is_of_its_own = isinstance(weight, nn.Parameter) and issubclass(type(weight), nn.Parameter)
    if not is_of_its_own or type(weight) is nn.Parameter:
        return state
    return {**state, "_parameters": {**parameters, "weight": Codes.of(weight)}}


def without_codes(state: dict[str, Any], module: nn.Module) -> dict[str, Any]:
    """Undo `with_codes`, for `module`, which gets this state."""
    parameters = state["_parameters"]
    codes = parameters.get("weight")
    if not isinstance(codes, Codes):
        return state
    return {**state, "_parameters": {**parameters, "weight": codes.parameter(module)}}
