"""What the settings of recipes may be: a wrong one is named before anything is looked at."""

import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from ..messages import check_module
from ..salience.arguments import check_seed
from ..salience.losses import check_batches
from ..schedules.schedule import check_count

__all__ = [
    "check_common",
    "check_count",
    "check_count_or_none",
    "check_lr",
    "check_number",
    "check_part",
    "check_share",
    "check_whole",
]


def check_common(model: Any, batches: Any, settings: Mapping[str, Any]) -> None:
    """What every recipe of the package takes, where it takes it: model, batches, loss, targets,
    seed, max_batches, density. Raises TypeError or ValueError that names it.
    """
    check_module("model", model)
    if batches is not None:
        check_batches(batches)
    loss = settings.get("loss")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss: expected a function (model, batch) -> scalar, got {loss!r}")
    targets = settings.get("targets")
    if targets is not None and not isinstance(targets, Iterable):
        raise TypeError(f"targets: expected glob pattern(s) or None, got {targets!r}")
    if "seed" in settings:
        check_seed(settings["seed"])
    check_count_or_none("max_batches", settings.get("max_batches"))
    density = settings.get("density")
    if density is not None:
        check_share("density", density)


def check_count_or_none(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a positive int or None."""
    if value is not None:
        check_count(name, value)


def check_whole(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is an int from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}: expected an int from 0 on, got {value!r}")


def check_share(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is in (0, 1]."""
    if not (_is_number(value) and 0 < value <= 1):
        percent = f"; {value:g} % is {value / 100:g}" if _is_number(value) and value > 1 else ""
        raise ValueError(f"{name}: expected a share in (0, 1], got {value!r}{percent}")


def check_part(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is in [0, 1]."""
    if not (_is_number(value) and 0 <= value <= 1):
        raise ValueError(f"{name}: expected a share in [0, 1], got {value!r}")


def check_lr(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a positive number."""
    if not (_is_number(value) and value > 0):
        raise ValueError(f"{name}: expected a positive number, got {value!r}")


def check_number(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a number."""
    if not _is_number(value):
        raise ValueError(f"{name}: expected a number, got {value!r}")


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_real and math.isfinite(value)
