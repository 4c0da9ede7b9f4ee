"""Origins: the pretrained values of what trains, where `sft.convert(..., origin=True)` kept them.

Of selected entries they stand in the `State` of their module, of a parameter that trains whole in a
`Whole` of the converted model. Either way they have the shape of what trains, the dtype of the
weight and its device.
"""

import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from .state import NAME, Slide
from .steps import owner_of

WHOLE = "_sparse_ft_whole"  # on the converted model: {name: `Whole`}
_whole: "weakref.WeakValueDictionary[int, Whole]" = weakref.WeakValueDictionary()


class Origin(Protocol):
    """What knows an origin: a `State` or a `Whole`. label: the parameter's name in the plan."""

    label: str
    origin: Any
    slide: Slide | None
    left: Any  # entries that trained once (`left.Left`), or None


class Whole:
    """The origin of a `parameter` that trains whole.

    A deep copy and a pickle of the model hold the copy of its parameter, too.
    """

    def __init__(self, label: str, parameter: nn.Parameter) -> None:
        self.label = label
        self.parameter = parameter
        self.kept = parameter.detach().clone()
        self.slide: Slide | None = None
        self.left = None
        _whole[id(parameter)] = self

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _whole[id(self.parameter)] = self

    @property
    def origin(self) -> torch.Tensor:
        """Where and what its parameter is now."""
        if self.parameter.device.type != "meta":
            self.kept = self.kept.to(self.parameter.device, self.parameter.dtype)
        return self.kept

    def follow(self, model: nn.Module) -> None:
        """Go on with the parameter that `model` has in the place of its own."""
        try:
            parameter = model.get_parameter(self.label)
        except AttributeError:
            return
        if parameter is not self.parameter and parameter.shape == self.kept.shape:
            self.parameter = parameter
            _whole[id(parameter)] = self


def origin_of(parameter: torch.Tensor) -> torch.Tensor | None:
    """The pretrained values of a trained parameter: of the selected entries, if it is the `values`
    of a module, of all of it, if it trains whole.

    Returns a tensor of the parameter's shape and device in the dtype of the weight; None where
    nobody kept them (`sft.convert(..., origin=True)` does). It is the tensor that `sft.restore`
    goes back to: not to be written.
    """
    owner = owner_of(parameter)
    if owner is not None:
        return owner.__dict__[NAME].origin
    whole = _whole.get(id(parameter))
    return whole.origin if whole is not None and whole.parameter is parameter else None


def keep_whole(model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """Keep the origins of parameters of `model` that train whole, by name."""
    model.__dict__[WHOLE] = {name: Whole(name, each) for name, each in parameters.items()}


def forget_whole(model: nn.Module) -> None:
    """Undo `keep_whole`."""
    model.__dict__.pop(WHOLE, None)


def origins_in(model: nn.Module) -> Iterator[tuple[Origin, nn.Parameter]]:
    """(who knows the origin, the trained parameter) of all in a converted model that has one."""
    for module in model.modules():
        state = module.__dict__.get(NAME)
        values = module._parameters.get("values")
        if state is not None and state.origin is not None and values is not None:
            yield state, values
    for whole in model.__dict__.get(WHOLE, {}).values():
        whole.follow(model)
        yield whole, whole.parameter
