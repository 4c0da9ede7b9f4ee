"""Lean forwards register themselves: for a class of torch's, or for what a probe finds alike."""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from .probe import Cases


class Probed(NamedTuple):
    """A lean forward, what it is tried on, and the method that it stands in for."""

    forward: Callable
    cases: Cases
    attribute: str


BY_CLASS: dict[type[nn.Module], Callable] = {}
BY_PROBE: list[Probed] = []


def lean_for(*classes: type[nn.Module]) -> Callable[[Callable], Callable]:
    """The decorated `forward(module, …)` stands in for that of these classes, not of subclasses."""

    def register(forward: Callable) -> Callable:
        BY_CLASS.update(dict.fromkeys(classes, forward))
        return forward

    return register


def lean_if(cases: Cases, attribute: str = "forward") -> Callable[[Callable], Callable]:
    """The decorated `forward(module, input)` stands in where it does what the module's own does.

    cases: see `probe.Cases`. attribute: the method's name in the module's class.
    """

    def register(forward: Callable) -> Callable:
        BY_PROBE.append(Probed(forward, cases, attribute))
        return forward

    return register


def attribute_of(forward: Callable) -> str:
    """Under which name an instance gets this lean forward."""
    return next((known.attribute for known in BY_PROBE if known.forward is forward), "forward")
