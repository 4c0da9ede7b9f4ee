"""A progress bar while `select` runs the model: tqdm's where it is installed, else lines
on stderr.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")
_SECONDS = 2.0  # between two lines of plain progress


def is_shown(progress: bool | None) -> bool:
    """Whether to show progress. None: where somebody looks, in a terminal or a notebook."""
    if progress is not None:
        return progress
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def number_of(items: Any) -> int | None:
    """How many items there are, None where that is not known: a generator, a DataLoader over a
    stream.
    """
    try:
        return len(items)
    except TypeError:
        return None


def followed(items: Iterable[Item], label: str, total: int | None, shown: bool) -> Iterator[Item]:
    """The items, one by one, their number shown as they go; `total` where it is known."""
    if not shown:
        return iter(items)
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _told(items, label, total)
    return iter(tqdm(items, desc=label, total=total, leave=False))


def _told(items: Iterable[Item], label: str, total: int | None) -> Iterator[Item]:
    of = f" of {total}" if total is not None else ""
    last = float("-inf")
    for number, item in enumerate(items):
        now = time.monotonic()
        if now - last >= _SECONDS:
            print(f"{label}: {number}{of} done", file=sys.stderr, flush=True)
            last = now
        yield item
