"""Held: what a graph holds of models and optimisers, looked at before each replay.

A graph holds addresses and numbers. Where something has moved, the step is to be recorded anew; a
number that has changed is refused by name.
"""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..nn import Selected
from ..nn.state import NAME
from .arguments import PLAIN


class Trained:
    """The models and optimisers of a step."""

    def __init__(self, models: list[nn.Module], optimizers: list[Optimizer]) -> None:
        self.models = models
        self.optimizers = optimizers
        self.device = self._device()

    def _device(self) -> torch.device:
        for model in self.models:
            for parameter in model.parameters():
                return parameter.device
        raise ValueError("model: it has no parameters")

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for model in self.models for parameter in model.parameters()]

    def selected(self) -> list[Selected]:
        """The modules with selected entries."""
        modules = [module for model in self.models for module in model.modules()]
        return [module for module in modules if isinstance(module, Selected)]

    def written_through(self) -> set[int]:
        """Ids of the parameters whose optimiser writes them into their weights itself."""
        found = set()
        for optimizer in self.optimizers:
            if getattr(optimizer, "writes_through", False):
                found |= {id(p) for group in optimizer.param_groups for p in group["params"]}
        return found


class Held:
    """What a graph holds: addresses, and the numbers of parameter groups.

    A module whose values `SelectiveAdamW` writes into the weight itself shows them before and after
    a replay. The graph of others begins with the write, and their weights are behind when it ends
    with a step.
    """

    def __init__(self, trained: Trained) -> None:
        self._optimizers = trained.optimizers
        self._parameters = trained.parameters()
        written = trained.written_through()
        self._written: list[Selected] = []
        self._others: list[Selected] = []
        for module in trained.selected():
            is_written = id(module._parameters["values"]) in written
            (self._written if is_written else self._others).append(module)
        self._behind: list[Selected] = []  # of `_others`, after a replay
        self._addresses: list[int] = []
        self._numbers: list[dict[str, Any]] = []
        self._rates: list[tuple[torch.Tensor, int]] = []
        self._gradients: list[tuple[nn.Parameter, torch.Tensor | None]] = []

    def begin(self) -> None:
        """Before the step is recorded."""
        self.show()
        for module in self._others:
            module.__dict__[NAME].shown = None  # so that the write is recorded
        self._addresses = self._found()
        self._numbers = self._settings()
        self._rates = [(rate, rate._version) for rate in self._tensor_rates()]
        self._gradients = [(p, p.grad) for p in self._parameters if p.requires_grad]

    def undo(self) -> None:
        """After a recording that failed: nothing of it was run."""
        for parameter, gradient in self._gradients:
            parameter.grad = gradient

    def end(self) -> None:
        """After it is recorded. Raises ValueError for what a replay would not do."""
        if self._settings() != self._numbers or any(r._version != v for r, v in self._rates):
            raise ValueError(
                "step: it changed the settings of an optimiser while it was recorded, which a"
                " replay would not do; call the scheduler's step() outside of it"
            )
        if any(old is not None and p.grad is old for p, old in self._gradients):
            raise ValueError(
                "step: it adds to gradients that were there before, and a replay would know no"
                " zero_grad() outside of it; clear the gradients within the step, or set them to"
                " None before each call"
            )
        self._gradients = [(p, p.grad) for p, _ in self._gradients if p.grad is not None]
        self._behind = [m for m in self._others if m.__dict__[NAME].shown is None]

    def show(self) -> None:
        """Make the weights show values that somebody wrote: a graph has no look at them."""
        for module in self._written:
            state = module.__dict__[NAME]
            if not module._is_shown(state):
                module.sync()

    def replayed(self) -> None:
        """After a replay, of which Python knows nothing."""
        for module in self._behind:
            module.__dict__[NAME].shown = None
        for parameter, gradient in self._gradients:
            if parameter.grad is not gradient:
                parameter.grad = gradient

    def is_current(self) -> bool:
        """Whether everything still lies where the graph looks for it."""
        for module in (*self._written, *self._others):
            if NAME not in module.__dict__:  # reverted
                return False
        return self._found() == self._addresses

    def check_numbers(self) -> None:
        """Raise ValueError for a setting that has changed since it was recorded."""
        for number, (was, now) in enumerate(zip(self._numbers, self._settings())):
            for name in was:
                if now.get(name) != was[name]:
                    raise ValueError(
                        f"{name}: parameter group {number} has {now.get(name)!r}, and the graph of"
                        f" this step holds the {was[name]!r} of its recording; give lr as a float32"
                        " tensor on the GPU, which a replay reads anew, or call sft.capture again"
                    )

    def _found(self) -> list[int]:
        """Where everything lies."""
        tensors: list[torch.Tensor] = list(self._parameters)
        for module in (*self._written, *self._others):
            state = module.__dict__[NAME]
            tensors += [module._parameters["values"], module._weight(), state.selection.index]
            tensors += [extra for extra in (state.factor, state.origin) if extra is not None]
        for optimizer in self._optimizers:
            for own in optimizer.state.values():
                tensors += [each for each in own.values() if isinstance(each, torch.Tensor)]
        tensors += self._tensor_rates()
        return [tensor.data_ptr() for tensor in tensors]

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def _tensor_rates(self) -> list[torch.Tensor]:
        """The learning rates that a replay reads anew."""
        rates = [group.get("lr") for group in self._groups()]
        return [rate for rate in rates if isinstance(rate, torch.Tensor) and not rate.is_cpu]

    def _settings(self) -> list[dict[str, Any]]:
        """The numbers of each parameter group."""
        return [
            {name: _number(each) for name, each in group.items() if _is_number(name, each)}
            for group in self._groups()
        ]


def _is_number(name: str, setting: Any) -> bool:
    """Whether a graph holds a setting as it was when it was recorded."""
    if isinstance(setting, torch.Tensor):
        return setting.is_cpu
    return name not in ("params", "param_names") and isinstance(setting, (*PLAIN, tuple, list))


def _number(setting: Any) -> Any:
    return setting.tolist() if isinstance(setting, torch.Tensor) else setting
