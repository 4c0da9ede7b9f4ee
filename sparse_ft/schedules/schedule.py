"""Schedule: what all of them share: they count steps, and their count is saved."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..messages import check_module, described


class Schedule:
    """Counts steps; `step()` goes after `optimizer.step()`.

    `attach(model, optimizer)` comes first. `state_dict()` holds numbers only: what trains is in the
    model's own state.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._model: nn.Module | None = None
        self._optimizer: torch.optim.Optimizer | None = None

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> "Schedule":
        """Begin, with this model and this optimiser. Returns the schedule itself.

        Raises TypeError for a model that is no module, or an optimiser that is none.
        """
        check_module("model", model)
        if optimizer is not None and not hasattr(optimizer, "param_groups"):
            raise TypeError(f"optimizer: expected an optimiser or None, got {described(optimizer)}")
        self._model, self._optimizer = model, optimizer
        return self

    @property
    def model(self) -> nn.Module:
        """The model; raises RuntimeError before `attach`."""
        if self._model is None:
            kind = type(self).__name__
            raise RuntimeError(
                f"{kind}: it has no model yet; call attach(model, optimizer) before the first step"
            )
        return self._model

    def step(self) -> Any:
        """One step of the optimiser is done. Returns what has changed, None for nothing."""
        model = self.model
        self.steps += 1
        return self._turn(model)

    def _turn(self, model: nn.Module) -> Any:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What to save: {"steps": how many there were}."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. Raises ValueError for what is no state of a schedule."""
        steps = state.get("steps") if isinstance(state, Mapping) else state
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise ValueError(f"state: expected a number of steps, got {described(steps)}")
        self.steps = steps


def check_count(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a positive int."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a positive int, got {value!r}")
