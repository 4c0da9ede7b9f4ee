"""What goes wrong while files are written: told of the folder, also where its disk is full."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from .misuse import Misuse, one_line

LEAST_ROOM = 2**20  # bytes; with fewer a disk is full
RUN = "; --resume goes on from a checkpoint that is whole"


@contextlib.contextmanager
def writing(path: Path, key: str = "output", more: str = "") -> Iterator[None]:
    """What goes wrong in here with the file or folder `path` is a Misuse of `key`.

    Not every library that writes files raises OSError where a disk is full. more: of the way out.
    """
    try:
        yield
    except OSError as error:
        raise Misuse(
            f"{key}: {str(path)!r} cannot be written: {one_line(error)}; make room, or give another"
            f" place{more}"
        ) from error
    except Exception as error:
        if not _is_full(path):
            raise
        raise Misuse(
            f"{key}: the disk of {str(path)!r} is full; make room, or give another place{more}"
        ) from error


def _is_full(path: Path) -> bool:
    there = next(each for each in (path, *path.resolve().parents) if each.exists())
    return shutil.disk_usage(there).free < LEAST_ROOM
