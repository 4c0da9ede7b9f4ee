"""Ctrl-C at a line of one's choice."""

import gc
import itertools
import sys
from collections.abc import Callable

import torch


def interrupted(act: Callable[[], object], line: int, is_ours: Callable[[str], bool]) -> bool:
    """Call `act`, interrupted before the `line`th line that it executes of certain files.

    is_ours: of a file's name, whether its lines count. Returns whether it came that far.
    """
    count, came_so_far = itertools.count(1), False

    def trace(frame, event, _):
        nonlocal came_so_far
        if not is_ours(frame.f_code.co_filename):
            return None
        if event == "line" and next(count) == line:
            came_so_far = True
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    open_before = autocast_depth()
    # A collection calls finalizers of other tests' objects, which would swallow the interrupt:
    collects = gc.isenabled()
    gc.disable()
    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
        if collects:
            gc.enable()
        # An interrupt at the last line of a `with`, before its end is called:
        torch.set_grad_enabled(True)
        close_autocast(open_before)
    return came_so_far


def autocast_depth() -> int:
    """How many regions of autocast are open."""
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return depth


def close_autocast(depth: int = 0) -> None:
    """Leave so many regions of autocast open; what they cast is forgotten."""
    for _ in range(autocast_depth() - depth):
        torch.autocast_decrement_nesting()
    if depth == 0:
        torch.clear_autocast_cache()
