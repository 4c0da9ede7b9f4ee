"""Writing a file so that it appears whole or not at all, also where the process is killed or the
power fails in the middle.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: what a killed process left behind stays there
    fcntl = None


def checked_path(path: str | bytes | os.PathLike) -> str:
    """`path` as a str. Raises TypeError or ValueError that names it where it is none."""
    try:
        name = os.fsdecode(path)
    except TypeError:
        raise TypeError(f"path: expected a str or os.PathLike, got {path!r}") from None
    if not name or "\0" in name:
        raise ValueError(f"path: expected the name of a file, got {name!r}")
    return name


@contextlib.contextmanager
def naming_path(path: str) -> Iterator[None]:
    """An OSError in here says `path:` and which; its class and errno stay."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"path: {error.strerror}", path) from None


@contextlib.contextmanager
def written_whole(path: str | bytes | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` when this ends without an exception.

    A link is followed. A file that was there gives its permissions and owner to the new one; a
    first one has what the umask leaves. Data and folder are on the disk (fsync) when this ends.
    What killed processes have left beside the file, begun and not finished, is removed. Raises
    OSError, TypeError or ValueError that name `path`; the old file is as it was then.
    """
    path = checked_path(path)
    with naming_path(path):
        target = os.path.realpath(path)
        before = _status(target)
        folder, name = os.path.split(target)
        prefix = f".sparse_ft-{hashlib.sha1(os.fsencode(name)).hexdigest()[:12]}-"
        _remove_unfinished(folder, prefix)
        temporary, handle = _new_file(
            folder, prefix, 0o666 if before is None else stat.S_IMODE(before.st_mode)
        )
        try:
            with os.fdopen(handle, "wb") as file:
                if before is not None:
                    _like(handle, before)
                yield file
                file.flush()
                os.fsync(handle)
                os.replace(temporary, target)  # still locked, or it could pass for unfinished
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_folder(folder)


def _status(target: str) -> os.stat_result | None:
    """What is known of the file that is there, or None.

    Raises OSError for what is no file: a folder, a device, a pipe.
    """
    try:
        status = os.stat(target)
    except FileNotFoundError:
        folder = os.path.dirname(target)
        if not os.path.isdir(folder):
            raise FileNotFoundError(
                errno.ENOENT, f"the folder {folder!r} does not exist; make it first"
            ) from None
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "expected a file, this is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "expected a file, this is a device or a pipe")
    return status


def _new_file(folder: str, prefix: str, mode: int) -> tuple[str, int]:
    """(path, handle) of an empty file that is locked, so that nobody takes it for one that a killed
    process has left.
    """
    while True:
        path = os.path.join(folder, f"{prefix}{secrets.token_hex(6)}.partial")
        handle = os.open(
            path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0), mode
        )
        if _lock(handle) and os.fstat(handle).st_nlink:
            return path, handle
        os.close(handle)  # it was seen, and removed, before it was locked


def _remove_unfinished(folder: str, prefix: str) -> None:
    if fcntl is None:
        return
    with contextlib.suppress(OSError):  # of another user, say; it harms nobody
        for name in os.listdir(folder):
            if name.startswith(prefix) and name.endswith(".partial"):
                _remove_if_dead(os.path.join(folder, name))


def _remove_if_dead(path: str) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where its writer lives
            os.unlink(path)
        finally:
            os.close(handle)


def _lock(handle: int) -> bool:
    """Whether no other process has the lock.

    Where the file system has no locks nobody can remove the file either.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _like(handle: int, before: os.stat_result) -> None:
    """Owner and permissions of the file that was there, as far as the system lets us."""
    if not hasattr(os, "fchown"):
        return
    now = os.fstat(handle)
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        with contextlib.suppress(PermissionError):
            os.fchown(handle, before.st_uid, before.st_gid)
    os.fchmod(handle, stat.S_IMODE(before.st_mode))


def _sync_folder(folder: str) -> None:
    """The new name is on the disk too; some file systems do not know how."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
