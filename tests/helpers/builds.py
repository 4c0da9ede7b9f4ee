"""Archives and wheels of this checkout's tracked files, built as a stranger's pip builds them."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What compiles in a fraction of the time: one instruction set, nothing optimised.
QUICK = {
    "SPARSE_FT_CUDA": "0",
    "SPARSE_FT_CPU_VARIANTS": "baseline",
    "SPARSE_FT_BUILD_TYPE": "Debug",
}
# An installation of this checkout for work would lend its compiled part to a wheel without one.
WITHOUT_CHECKOUT = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
"""
NO_COMPILER = {"SPARSE_FT_CUDA": "0", "CXX": "/bin/false"}


def tracked() -> list[str]:
    """The names of the files that git knows; the test is skipped where it knows none."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    names = [name for name in listed.stdout.split("\0") if name]
    if not names:
        pytest.skip("not a git checkout: no list of tracked files")
    return names


def copy_tracked(to: Path) -> Path:
    """A copy of what is tracked, so that nothing left over from earlier builds can help."""
    for name in tracked():
        target = to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    return to


def run(command: list[str], folder: Path, **environment: str) -> str:
    """What a command printed, both streams; it must succeed."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=800,
        env={**os.environ, "PYTHONPATH": "", **environment},
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-4000:]
    return output


def source_archive(sources: Path, into: Path) -> Path:
    """The sdist of a folder of sources, as `python -m build` asks setuptools for it."""
    into.mkdir()
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(["-c", build, str(into)], sources)
    (archive,) = into.glob("*.tar.gz")
    return archive


def unpacked(archive: Path, into: Path) -> Path:
    """The one folder that a source archive holds."""
    with tarfile.open(archive) as file:
        file.extractall(into, filter="data")
    (folder,) = into.iterdir()
    return folder


def wheel(sources: Path, into: Path, **environment: str) -> tuple[Path, str]:
    """Build without isolation, as the tools are in this environment.

    Returns the wheel and what the build printed.
    """
    work = into / "work"
    shutil.copytree(sources, work)
    options = ["--no-deps", "--no-build-isolation", "-v", "-w", str(into)]
    output = run(["-m", "pip", "wheel", ".", *options], work, **environment)
    (built,) = into.glob("*.whl")
    return built, output


def installed(built: Path, into: Path) -> Path:
    """The folder of packages that a wheel makes, as pip would."""
    with zipfile.ZipFile(built) as file:
        file.extractall(into)
    return into


def run_python(site: Path, script: str, folder: Path) -> str:
    """The output of a script that sees the packages of `site` and, from another directory,
    nothing of this checkout.
    """
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_CHECKOUT + script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
