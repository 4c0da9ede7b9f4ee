"""Putting values into the tensors of a model and getting what was there.

Exact, and undone where it fails half way.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from .. import ops
from ..quantised.module import shape_of
from . import places
from .fingerprint import bits_of
from .part import Part


class Held(NamedTuple):
    """is_in: whether the values are in the tensor.

    values: the ones to put in while they are out, what was there before while they are in.
    """

    is_in: bool
    values: torch.Tensor


class Begun(NamedTuple):
    """What was held before a swap that has not ended.

    tensor: what one that changes whole held; None for entries.
    """

    held: Held
    tensor: torch.Tensor | None


@dataclasses.dataclass
class Exchange:
    """Values that trade places with the entries of a tensor.

    part: where, and the values to put in.
    """

    name: str
    part: Part
    held: Held
    begun: Begun | None = None

    @classmethod
    def of(cls, name: str, part: Part, tensor: torch.Tensor) -> "Exchange":
        """An exchange that is out, on the device and in the dtype of `tensor`."""
        return cls(name, part, Held(False, _like(tensor, part.values, copy=True)))

    @torch.no_grad()
    def swap(self, model: nn.Module, quietly: bool) -> None:
        """Trade places; every bit survives.

        quietly: no version counter moves. Who swaps back before any backward breaks no graph.
        """
        tensor = placed(model, self.name, self.part)
        self.held = Held(self.held.is_in, _like(tensor, self.held.values))
        target = tensor.data if quietly else tensor.detach()
        selection, values = self.part.selection, self.held.values
        if selection is None:
            before = target.clone()
            self.begun = Begun(self.held, before)
            target.copy_(values)
            self.held = Held(not self.held.is_in, before)
        else:
            layout = selection.to(tensor.device).layout
            self.begun = Begun(self.held, None)
            ops.swap_selected_(target.view(self.part.matrix_shape), values, *layout)
            self.held = Held(not self.held.is_in, values)
        self.begun = None

    @torch.no_grad()
    def settle(self, model: nn.Module, quietly: bool) -> None:
        """After a swap that was interrupted anywhere: know again where the values are."""
        if self.begun is None:
            return
        held, before = self.begun
        if before is None:
            # What is held tells whether it has traded places with the values: they are known.
            new = _like(held.values, self.part.values)
            is_out = torch.equal(bits_of(held.values), bits_of(new))
            self.held = Held(not is_out, held.values)
        else:
            tensor = placed(model, self.name, self.part)
            (tensor.data if quietly else tensor.detach()).copy_(before)
            self.held = held
        self.begun = None


def swap_all(
    model: nn.Module, exchanges: Iterable[Exchange], into: bool, quietly: bool = False
) -> None:
    """Bring each of `exchanges` in (into=True) or out, in order.

    After an exception, an interrupt too, each is where it was.
    """
    begun: list[Exchange] = []
    try:
        for exchange in exchanges:
            if exchange.held.is_in != into:
                begun.append(exchange)
                exchange.swap(model, quietly)
    except BaseException:
        for exchange in reversed(begun):
            exchange.settle(model, quietly)
            if exchange.held.is_in == into:
                exchange.swap(model, quietly)
        raise


@contextlib.contextmanager
def for_a_while(begin: Callable[[], object], end: Callable[[], object]) -> Iterator[None]:
    """`begin` before, `end` after, also after an interrupt at any line.

    `end` may be called after a `begin` that did nothing or half, and again.
    """
    try:
        try:
            begin()
            yield
        finally:
            end()
    except BaseException:
        end()
        raise


def tensor_of(model: nn.Module, name: str, part: Part) -> torch.Tensor:
    """The tensor of a model that `part` is for.

    Raises KeyError or ValueError that name it where there is none, or where it is another one.
    """
    tensor = placed(model, name, part)
    if part.selection is not None and places.layer_of(model, name) is None:
        matrix = tuple(places.matrix_of(model, name).shape)
        if matrix != part.matrix_shape:
            raise ValueError(
                f"delta: {name!r} is the matrix {matrix} in this model, and the delta was made for"
                f" {part.matrix_shape}"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"delta: {name!r} is {tensor.dtype} in this model, which is quantised")
    if tensor.device.type == "meta":
        raise ValueError(f"delta: {name!r} is on the meta device; load the model first")
    return tensor


def placed(model: nn.Module, name: str, part: Part) -> torch.Tensor:
    """The tensor of a model that `part` has been found to be for.

    Raises KeyError or ValueError that name it where it is there no more, or has another shape.
    """
    owner, attribute = places.owner_of(model, name)
    tensor = places.tensor_of(owner, attribute)
    packed = shape_of(owner) if attribute == "weight" else None
    shape = tuple(tensor.shape) if packed is None else packed
    if shape != part.shape:
        raise ValueError(
            f"delta: {name!r} has shape {shape} in this model, and the delta was made for"
            f" {part.shape}"
        )
    return tensor


def _like(tensor: torch.Tensor, values: torch.Tensor, copy: bool = False) -> torch.Tensor:
    """`values` on the device and in the dtype of `tensor`."""
    return values.detach().to(tensor.device, tensor.dtype, copy=copy).contiguous()
