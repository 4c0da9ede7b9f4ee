"""Saving a plan: whole or not at all, with the permissions that were there, through links, and
nothing is left behind.
"""

import errno
import os
import stat
import sys
import threading

import pytest
from helpers import saving

import sparse_ft as sft
from sparse_ft import _atomic

OLD, NEW = sft.Plan({"a": sft.Rows([1])}), sft.Plan({"b": "all"})


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666, 0o755], ids=oct)
def test_permissions_of_the_file_that_was_there(tmp_path, mode):
    OLD.save(tmp_path / "plan")
    os.chmod(tmp_path / "plan", mode)
    NEW.save(tmp_path / "plan")
    assert mode_of(tmp_path / "plan") == mode and sft.Plan.load(tmp_path / "plan") == NEW


def test_a_private_file_is_private_before_anything_is_written(tmp_path, monkeypatch):
    OLD.save(tmp_path / "plan")
    os.chmod(tmp_path / "plan", 0o600)
    seen, fsync = [], os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda handle: (seen.append(stat.S_IMODE(os.fstat(handle).st_mode)), fsync(handle)),
    )
    NEW.save(tmp_path / "plan")
    assert seen[0] == 0o600


def test_the_umask_of_the_process_is_left_alone(tmp_path):
    """Another thread that makes files meanwhile would have them open to everyone."""
    before, loose, done = os.umask(0o077), [], threading.Event()

    def other():
        while not (loose and done.is_set()):  # once at least
            handle = os.open(tmp_path / "other", os.O_CREAT | os.O_WRONLY, 0o666)
            loose.append(stat.S_IMODE(os.fstat(handle).st_mode))
            os.close(handle)
            os.unlink(tmp_path / "other")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=other)
    try:
        thread.start()
        for _ in range(100):
            NEW.save(tmp_path / "plan")
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)
        os.umask(before)
    assert set(loose) == {0o600} and mode_of(tmp_path / "plan") == 0o600


def test_a_link_stays_and_its_target_changes(tmp_path):
    (tmp_path / "there").mkdir()
    OLD.save(tmp_path / "there" / "plan")
    os.symlink("there/plan", tmp_path / "link")
    os.symlink("link", tmp_path / "link of a link")
    NEW.save(tmp_path / "link of a link")
    assert os.path.islink(tmp_path / "link") and os.path.islink(tmp_path / "link of a link")
    assert sft.Plan.load(tmp_path / "there" / "plan") == NEW
    assert os.listdir(tmp_path / "there") == ["plan"]


def test_a_link_to_nothing_makes_its_target(tmp_path):
    os.symlink("plan", tmp_path / "link")
    NEW.save(tmp_path / "link")
    assert os.path.islink(tmp_path / "link") and sft.Plan.load(tmp_path / "plan") == NEW


def test_file_and_folder_are_on_the_disk(tmp_path, monkeypatch):
    """The data before the new name, the new name before `save` returns."""
    order, fsync, replace = [], os.fsync, os.replace
    folder = (os.stat(tmp_path).st_dev, os.stat(tmp_path).st_ino)

    def watched_fsync(handle):
        status = os.fstat(handle)
        order.append("folder" if (status.st_dev, status.st_ino) == folder else "file")
        fsync(handle)

    def watched_replace(*names):
        order.append("replace")
        replace(*names)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    NEW.save(tmp_path / "plan")
    assert order == ["file", "replace", "folder"]


class Begun:
    """A process in the middle of saving to `path`."""

    def __init__(self, path):
        self.pipe, theirs = saving.PROCESSES.Pipe()
        self.process = saving.PROCESSES.Process(target=saving.begin, args=(str(path), theirs))
        self.process.start()
        theirs.close()
        assert self.pipe.poll(120) and self.pipe.recv() == "begun"

    def kill(self):
        self.process.kill()
        self.process.join(120)

    def end(self):
        self.pipe.send("go on")
        self.process.join(120)
        return self.process.exitcode


def test_what_a_killed_process_left_is_removed_by_the_next_save(tmp_path):
    path = tmp_path / "plan"
    OLD.save(path)
    killed, alive = Begun(path), Begun(path)
    try:
        killed.kill()
        assert len(os.listdir(tmp_path)) == 3 and sft.Plan.load(path) == OLD
        NEW.save(tmp_path / "another plan")
        assert len(os.listdir(tmp_path)) == 4  # which is none of that one's business
        NEW.save(path)
        # The living one's is there.
        assert len(os.listdir(tmp_path)) == 3 and sft.Plan.load(path) == NEW
        assert alive.end() == 0 and path.read_bytes() == b"half"
        assert sorted(os.listdir(tmp_path)) == ["another plan", "plan"]
    finally:
        killed.kill()
        alive.kill()


def test_processes_that_save_at_once(tmp_path):
    """Each takes none of the others' files for one that was left behind; the last one wins."""
    path = tmp_path / "plan"
    runs = [saving.PROCESSES.Process(target=saving.save_often, args=(str(path),)) for _ in range(3)]
    for run in runs:
        run.start()
    try:
        for run in runs:
            run.join(120)
        assert [run.exitcode for run in runs] == [0, 0, 0]
    finally:
        for run in runs:
            run.kill()
            run.join(120)
    assert os.listdir(tmp_path) == ["plan"]
    assert sft.Plan.load(path) == sft.Plan({"a": sft.Rows([39])})


def test_a_save_that_fails_leaves_the_old_plan_and_nothing_else(tmp_path, monkeypatch):
    OLD.save(tmp_path / "plan")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match="path: No space left on device.*plan") as caught:
                NEW.save(tmp_path / "plan")
            assert caught.value.errno == errno.ENOSPC
        assert os.listdir(tmp_path) == ["plan"] and sft.Plan.load(tmp_path / "plan") == OLD


PATHS = {
    "none": (None, TypeError, "path: expected a str or os.PathLike, got None"),
    "a number": (5, TypeError, "path: expected a str or os.PathLike, got 5"),
    "nothing": ("", ValueError, "path: expected the name of a file, got ''"),
    "a null character": ("a\0b", ValueError, r"path: expected the name of a file, got 'a\\x00b'"),
    "a folder": (".", IsADirectoryError, "path: .*folder.*'.'|path: Is a directory: '.'"),
    "too long": ("n" * 300, OSError, "path: File name too long: 'nnn"),
    "a device": (os.devnull, OSError, "path: expected a file, this is a device.*null"),
}


@pytest.mark.parametrize("kind", PATHS)
def test_paths_that_are_no_file_are_named(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path, error, message = PATHS[kind]
    for use in (OLD.save, sft.Plan.load):
        with pytest.raises(error, match=message):
            use(path)
    assert not os.listdir(tmp_path) and stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_missing_folder_or_file_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match="path: the folder '.*none' does not exist; make it first: '.*none.plan'",
    ):
        OLD.save(tmp_path / "none" / "plan")
    for path in (tmp_path / "none" / "plan", tmp_path / "plan"):
        with pytest.raises(FileNotFoundError, match="path: No such file or directory: '.*plan'"):
            sft.Plan.load(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="path: expected a file, this is a device or a pipe"):
        OLD.save(tmp_path / "pipe")
    with pytest.raises(OSError, match="path: expected a file, this is a device or a pipe"):
        sft.Plan.load(tmp_path / "pipe")


def test_bytes_and_paths_are_names_too(tmp_path):
    OLD.save(os.fsencode(tmp_path / "plan"))
    assert (
        sft.Plan.load(os.fsencode(tmp_path / "plan"))
        == OLD
        == sft.Plan.load(str(tmp_path / "plan"))
    )


def test_a_name_as_long_as_it_may_be(tmp_path):
    OLD.save(tmp_path / ("n" * 255))
    assert sft.Plan.load(tmp_path / ("n" * 255)) == OLD


def test_without_locks_nothing_is_removed(tmp_path, monkeypatch):
    """On a system that has none, nobody could tell a dead process's file from a living one's."""
    monkeypatch.setattr(_atomic, "fcntl", None)
    OLD.save(tmp_path / "plan")
    Begun(tmp_path / "plan").kill()
    NEW.save(tmp_path / "plan")
    assert len(os.listdir(tmp_path)) == 2 and sft.Plan.load(tmp_path / "plan") == NEW
