"""Ctrl-C at a line of one's choice."""

import itertools
import sys
from collections.abc import Callable

import torch


def interrupted(act: Callable[[], object], line: int, is_ours: Callable[[str], bool]) -> bool:
    """Call `act`, interrupted before the `line`th line that it executes of certain files.

    is_ours: of a file's name, whether its lines count. Returns whether it came that far.
    """
    count = itertools.count(1)

    def trace(frame, event, _):
        if not is_ours(frame.f_code.co_filename):
            return None
        if event == "line" and next(count) == line:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        act()
        return False
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
        torch.set_grad_enabled(True)  # an interrupt in the last line of `with torch.no_grad()`
