"""A hook that torch calls after the step of every optimiser of the process, as long as somebody
needs it.

Models die when the garbage collector finds them, which may be anywhere: within the step of another
optimiser, or of another thread. torch goes through its hooks then, and breaks off with an error
where one was taken out.
"""

import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

# What every optimiser's step runs in, which goes through the hooks.
_wrap: Any = getattr(Optimizer, "profile_hook_step", None)
_STEP: CodeType | None = None if _wrap is None else _wrap(_wrap).__code__


class StepHook:
    """`call(optimizer, args, kwargs)`, which torch has while it is needed."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call
        self._handle: Any = None  # torch's, while it has the hook

    @property
    def is_there(self) -> bool:
        """Whether torch has it."""
        return self._handle is not None

    def keep(self, is_needed: bool) -> None:
        """Let torch have it, or no more: while any optimiser steps it stays, and the next call of
        this takes it out.
        """
        if is_needed and self._handle is None:
            handle = register_optimizer_step_post_hook(self._call)
            if self._handle is None:
                self._handle = handle
            else:  # a collection within has been here
                handle.remove()
        elif not is_needed and self._handle is not None and not is_stepping():
            handle, self._handle = self._handle, None
            handle.remove()


def is_stepping() -> bool:
    """Whether an optimiser steps now, in any thread; where torch does not let see, it may."""
    if _STEP is None:
        return True
    for top in sys._current_frames().values():
        frame: Any = top
        while frame is not None:
            if frame.f_code is _STEP:
                return True
            frame = frame.f_back
    return False
