"""Rotate: a few units of a model train for some steps, then others do (LISA, BAdam)."""

import fnmatch
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..messages import check_module, did_you_mean
from ..salience.lots import drawn
from ..salience.recompute import members_of_lists
from .schedule import Schedule, check_count

ORDERS = ("random", "ascending", "descending")
Patterns = str | Iterable[str]


class Rotate(Schedule):
    """`n` units train for `every` steps, then the next ones do.

    units: {label: glob pattern(s) on parameter names}, or a list of such patterns; None: the
    members of the model's lists, such as a transformer's blocks. A converted model's selected
    entries are the parameters called "….values". order: "random" (drawn anew for every window, by
    `seed`: LISA), "ascending" or "descending" (in turn: BAdam). always: patterns of what is in
    units and trains all the time, as does whatever is in no unit.

    A unit that is out of turn has no gradient and no optimiser state: both are freed, so that
    memory does not grow from window to window; when its turn comes again, its moments begin anew.
    Its weights keep what they have learnt. Raises ValueError that names the argument.
    """

    def __init__(
        self,
        n: int,
        every: int,
        *,
        units: Mapping[str, Patterns] | Iterable[Patterns] | None = None,
        order: str = "random",
        always: Patterns = (),
        seed: int = 0,
    ):
        super().__init__()
        check_count("n", n)
        check_count("every", every)
        if order not in ORDERS:
            raise ValueError(f"order: expected {' or '.join(map(repr, ORDERS))}, got {order!r}")
        self._count, self._every, self._order, self._seed = n, every, order, seed
        self._asked = units
        self._always = _as_list(always)
        self._units: dict[str, list[nn.Parameter]] = {}

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> "Rotate":
        """Begin with the first window. model: all of its units' parameters train by now.

        In several processes: DistributedDataParallel(model, find_unused_parameters=True) first,
        while all units train, for it averages what trains when it is made; then attach to it.
        """
        if isinstance(model, DistributedDataParallel):
            _check_waits_for_nothing(model)
            model = model.module
        elif torch.distributed.is_available() and torch.distributed.is_initialized():
            warnings.warn(
                "Rotate: a DistributedDataParallel that is made from now on leaves out the units"
                " whose turn it is not; make it first, and attach to what"
                " DistributedDataParallel(model, find_unused_parameters=True) gives",
                stacklevel=2,
            )
        check_module("model", model)
        units = self._found(model)
        if self._count > len(units):
            raise ValueError(f"n: expected at most {len(units)}, the number of units, got"
                             f" {self._count}")  # fmt: skip
        super().attach(model, optimizer)
        self._units = units
        self._set()
        return self

    @property
    def active(self) -> list[str]:
        """The labels of the units whose turn it is."""
        window = self.steps // self._every
        labels = list(self._units)
        if self._order == "random":
            random = drawn(len(labels), self._count, self._seed * 1_000_003 + window)
            return [labels[number] for number in sorted(random.tolist())]
        first = window * self._count
        numbers = [(first + number) % len(labels) for number in range(self._count)]
        if self._order == "descending":
            numbers = [len(labels) - 1 - number for number in numbers]
        return [labels[number] for number in numbers]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; the units of that window train."""
        super().load_state_dict(state)
        if self._units:
            self._set()

    def _turn(self, model: nn.Module) -> list[str] | None:
        if self.steps % self._every:
            return None
        self._set()
        return self.active

    def _set(self) -> None:
        """Let the units of this window train, and no others."""
        active = set(self.active)
        for label, parameters in self._units.items():
            for parameter in parameters:
                parameter.requires_grad_(label in active)
                if label not in active:
                    parameter.grad = None
                    _forget(self._optimizer, parameter)

    def _found(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """{label: its parameters}."""
        parameters = dict(model.named_parameters())
        found: dict[str, list[nn.Parameter]] = {}
        taken: dict[str, str] = {}
        _names(self._always, parameters, "always")
        for label, patterns in _labelled(self._asked, model).items():
            names = _names(patterns, parameters, label)
            found[label] = []
            for name in names:
                if any(fnmatch.fnmatchcase(name, pattern) for pattern in self._always):
                    continue
                if name in taken:
                    raise ValueError(f"units: {name!r} is in {taken[name]!r} and in {label!r}")
                taken[name] = label
                if parameters[name].requires_grad:
                    found[label].append(parameters[name])
        found = {label: members for label, members in found.items() if members}
        if not found:
            raise ValueError(
                "units: none of their parameters trains; convert the model with all that is to take"
                " turns first"
            )
        return found


def _check_waits_for_nothing(model: Any) -> None:
    """Raise ValueError where DistributedDataParallel would wait for gradients that do not come."""
    if not model.find_unused_parameters:
        raise ValueError(
            "model: DistributedDataParallel waits for the gradients of all that trained when it was"
            " made, and units out of turn have none; make it with find_unused_parameters=True"
        )
    if model.static_graph:
        raise ValueError(
            "model: DistributedDataParallel(static_graph=True) expects the same units at every"
            " step; leave static_graph out"
        )


def _labelled(units: Any, model: nn.Module) -> dict[str, list[str]]:
    if units is None:
        members = members_of_lists(model)
        if not members:
            raise ValueError("units: the model has no nn.ModuleList; name its units by patterns")
        return {name: [f"{name}.*"] for name in members}
    if isinstance(units, str):
        units = [units]
    if isinstance(units, Mapping):
        return {label: _as_list(patterns) for label, patterns in units.items()}
    return {", ".join(_as_list(patterns)): _as_list(patterns) for patterns in units}


def _names(patterns: list[str], parameters: dict[str, nn.Parameter], label: str) -> list[str]:
    found = []
    for pattern in patterns:
        names = fnmatch.filter(parameters, pattern)
        if not names:
            near = did_you_mean(pattern.strip("*"), parameters)
            where = "always" if label == "always" else "units"
            of_label = "" if label == "always" else f" of {label!r}"
            raise ValueError(f"{where}: {pattern!r}{of_label} matches no parameter{near}")
        found += [name for name in names if name not in found]
    return found


def _as_list(patterns: Patterns) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _forget(optimizer: torch.optim.Optimizer | None, parameter: nn.Parameter) -> None:
    """Free what the optimiser knows of a parameter."""
    if optimizer is None:
        return
    forget = getattr(optimizer, "forget", None)
    if forget is None:
        optimizer.state.pop(parameter, None)
    else:
        forget(parameter)
