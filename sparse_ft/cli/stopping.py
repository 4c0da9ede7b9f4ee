"""Ctrl-C and SIGTERM: the step ends, a checkpoint is written, the run can go on."""

import signal
import threading
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopAtStep(TrainerCallback):
    """Ends the training after the step in which a signal came, with a checkpoint.

    A second signal does what it always does. In several processes nothing is caught, for they
    would stop at different steps; their last checkpoint stands. signal: the one that came.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        if args.world_size == 1 and is_main:
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self.signal is not None:
            control.should_save = True
            control.should_training_stop = True
        return control

    def put_back(self) -> None:
        """The signals do again what they did before."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self.signal = number
        self.put_back()
