"""warn: a warning that points at the user's call, however deep below it something was noticed."""

import inspect
import warnings
from types import FrameType


def warn(message: str) -> None:
    """A UserWarning at the innermost line that is not of this package."""
    package = __name__.partition(".")[0]
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_back is not None and _is_of(frame, package):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def _is_of(frame: FrameType, package: str) -> bool:
    return frame.f_globals.get("__name__", "").partition(".")[0] == package
