"""Process: a method whose choice changes while training goes on, or writes weights on its way."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..conversion import convert, revert
from ..optim import SelectiveAdamW
from ..plan import Plan
from ..report import Report
from ..schedules.schedule import Schedule

if TYPE_CHECKING:
    from .recipe import Recipe


class Process(Schedule):
    """What trains at first, and a schedule that goes on from there.

        lift = sft.recipes.get("lift")(model, density=0.05)
        optimizer = lift.start(model, lr=1e-4)
        for batch in batches:
            model(**batch).loss.backward()
            optimizer.step()
            lift.step()
            optimizer.zero_grad()

    or `sft.convert(model, lift.plan, origin=lift.origin)` and, after the optimiser is made,
    `lift.attach(model, optimizer)`. A trainer takes it as a schedule: `ScheduleCallback(lift)`.

    plan: what trains at first. origin: whether the pretrained values are to be kept for it.
    decay_to: for `SelectiveAdamW`.
    """

    def __init__(self, plan: Plan, origin: bool = False):
        super().__init__()
        self.plan = plan
        self.origin = origin
        self.decay_to = "zero"
        self.name = ""

    def add(self, recipe: "Recipe", more: Plan) -> None:
        """Be of this recipe, and let `more` train beside its choice."""
        self.name, self.decay_to = recipe.name, recipe.decay_to
        self.origin = self.origin or self.decay_to == "origin"
        self.plan = self.plan | more

    def convert(self, model: nn.Module, lean: bool = False) -> Report:
        """`sft.convert` with its plan, and the pretrained values kept where it needs them."""
        return convert(model, self.plan, lean=lean, origin=self.origin)

    def start(
        self, model: nn.Module, lr: float | torch.Tensor, *, lean: bool = False, **settings: Any
    ) -> SelectiveAdamW:
        """Convert the model, make its optimiser, attach to both; returns the optimiser.

        settings: of `SelectiveAdamW`. After an exception the model is not converted any more.
        """
        self.convert(model, lean)
        try:
            asked = {"decay_to": self.decay_to, **settings}
            optimizer = SelectiveAdamW(model.parameters(), lr, **asked)
            self.attach(model, optimizer)
        except BaseException:
            revert(model)
            raise
        return optimizer

    def _turn(self, model: nn.Module) -> Any:
        return None


class Looking(Process):
    """A process that looks at gradients before each step of the optimiser."""

    _hook: Any = None

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> "Looking":
        """Begin, with this model and this optimiser."""
        if optimizer is None:
            raise ValueError("optimizer: the method looks at gradients before its steps, got None")
        super().attach(model, optimizer)
        if self._hook is not None:
            self._hook.remove()
        self._hook = optimizer.register_step_pre_hook(self._look)
        return self

    def _look(self, *_: Any) -> None:
        raise NotImplementedError


class Scheduled(Process):
    """A process that is one of the plain schedules, `sft.Every` or `sft.Rotate` and the like."""

    def __init__(self, plan: Plan, schedule: Schedule, origin: bool = False):
        super().__init__(plan, origin)
        self.schedule = schedule

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> "Scheduled":
        """Begin, with this model and this optimiser."""
        super().attach(model, optimizer)
        self.schedule.attach(model, optimizer)
        return self

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state)
        self.schedule.load_state_dict({"steps": self.steps})

    def _turn(self, model: nn.Module) -> Any:
        return self.schedule.step()
