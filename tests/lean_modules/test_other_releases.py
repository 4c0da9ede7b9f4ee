"""Language models of other releases of transformers are as lean, each in a process of its own.

`make test` puts the oldest release that pyproject.toml names, and the newest that there is, into
folders beside site-packages.
"""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
from helpers.lean_language_models import CONFIGS  # noqa: E402

pytestmark = pytest.mark.usefixtures("made_on_device")

TESTS = Path(__file__).parent.parent
HELPER = TESTS / "helpers" / "lean_language_models.py"
RELEASES = "oldest", "newest"
# The experts of Mixtral were modules of their own before transformers 5.
DENSE = sorted(CONFIGS.keys() - {"mixtral"})


@functools.cache
def measured(release: str | None) -> dict:
    """What the helper says under a release; None: the one that is installed."""
    folder = Path(sys.prefix) / f"transformers-{release}"
    if release is not None and not (folder / "transformers").is_dir():
        return {"cannot": f"`make test` could not put it into {folder}"}
    command = [sys.executable, HELPER, folder if release else TESTS]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=TESTS.parent)
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert release is None or "cannot" in found or found["from"].startswith(str(folder))
    return found


def models_of(release: str) -> dict:
    found = measured(release)
    if "cannot" in found:
        pytest.skip(f"the {release} transformers: {found['cannot']}")
    return found["models"]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("kind", CONFIGS)
def test_all_of_it_is_lean(release, kind):
    found = models_of(release)[kind]
    assert found["loss is lean"] and found["left"] == []
    assert found["loss apart"] < 1e-5 and found["gradients apart"] < 1e-5


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("kind", DENSE)
def test_keeps_what_it_keeps_under_the_release_installed(release, kind):
    found, here = models_of(release)[kind], measured(None)["models"][kind]
    assert found["before"] == pytest.approx(here["before"], rel=0.01)
    assert found["after"] == pytest.approx(here["after"], rel=0.01)
    assert found["after"] < 0.7 * found["before"]
