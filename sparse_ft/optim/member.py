"""Member: a parameter where an optimiser holds it."""

import dataclasses
from typing import Any

import torch


@dataclasses.dataclass(slots=True)
class Member:
    """Number `place` of the parameters of `group`."""

    optimizer: torch.optim.Optimizer
    group: dict[str, Any]
    place: int
    parameter: torch.Tensor

    @classmethod
    def find(cls, optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> "Member | None":
        """Where it is; None: nowhere."""
        for group in optimizer.param_groups:
            for place, other in enumerate(group["params"]):
                if other is parameter:
                    return cls(optimizer, group, place, parameter)
        return None

    @property
    def state(self) -> dict[str, Any]:
        return self.optimizer.state.get(self.parameter, {})

    def exchange(self, parameter: torch.Tensor, state: dict[str, Any]) -> None:
        """Let `parameter` with `state` be in this place. Tensors that fit go on with other content.

        Called again after an interrupt, it does the rest.
        """
        if parameter is not self.parameter:
            self.group["params"][self.place] = parameter
            self.optimizer.state.pop(self.parameter, None)
            replaced = getattr(self.optimizer, "_replaced", None)
            if replaced is not None:
                replaced(self.parameter)
        if not state:
            return
        own = self.optimizer.state[parameter]
        for name, what in state.items():
            if _fits(own.get(name), what):
                own[name].copy_(what)
            else:
                own[name] = what
        for name in own.keys() - state.keys():
            del own[name]


def _fits(held: Any, what: Any) -> bool:
    if not isinstance(held, torch.Tensor) or not isinstance(what, torch.Tensor):
        return False
    return held.shape == what.shape and held.dtype == what.dtype
