"""ScheduleCallback: schedules step with transformers' Trainer, and with TRL's.

Trainer(model, arguments, callbacks=[ScheduleCallback(sft.Every(100, rule))], …)
"""

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ScheduleCallback(TrainerCallback):
    """Attaches schedules when training begins, and steps them after every step of the optimiser.

    schedules: of `sft.Once`, `Every`, `Rotate`, `Window`, `Candidates`, or anything with `step()`;
    in this order. `train(resume_from_checkpoint=…)` goes on with the count of steps that the
    trainer has: nothing is saved besides. Raises TypeError for what has no `step`.
    """

    def __init__(self, *schedules: Any):
        for schedule in schedules:
            if not callable(getattr(schedule, "step", None)):
                raise TypeError(f"schedules: expected objects with step(), got {schedule!r}")
        self.schedules = schedules

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wraps the one that steps
        for schedule in self.schedules:
            if hasattr(schedule, "attach"):
                schedule.attach(model, inner)
            if hasattr(schedule, "load_state_dict"):
                schedule.load_state_dict({"steps": state.global_step})

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for schedule in self.schedules:
            schedule.step()
