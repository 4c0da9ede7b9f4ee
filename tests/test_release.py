"""What a release says of itself: one version, extras that are enough, Pythons that are named."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sparse_ft as sft

tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sparse_ft"
DOCUMENT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = DOCUMENT["project"]
# Where a name is not that of what is installed.
DISTRIBUTIONS = {"yaml": "pyyaml"}


def test_the_version_is_said_in_one_place():
    assert PROJECT["dynamic"] == ["version"]
    said = re.compile(rf"(?<![\d.]){re.escape(sft.__version__)}(?![\d.])")
    places = [ROOT / name for name in ("pyproject.toml", "setup.py", "CMakeLists.txt")]
    places += PACKAGE.rglob("*.py")
    found = [path for path in places if said.search(path.read_text())]
    assert found == [PACKAGE / "_version.py"]


def test_the_changelog_begins_with_this_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## (\S+)", text, re.M).group(1) == sft.__version__


def test_the_pythons_that_are_named_are_those_that_wheels_are_made_for():
    prefix = "Programming Language :: Python :: 3."
    named = [text for text in PROJECT["classifiers"] if text.startswith(prefix)]
    (wheels,) = re.findall(r"^PYTHONS = (.*)$", (ROOT / "tools/wheels.py").read_text(), re.M)
    assert [text.rpartition(" ")[2] for text in named] == list(ast.literal_eval(wheels))
    assert PROJECT["requires-python"] == f">={ast.literal_eval(wheels)[0]}"


def test_every_room_is_packaged():
    rooms = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("*.py")}
    assert rooms | {"sparse_ft.kernels"} == set(DOCUMENT["tool"]["setuptools"]["packages"])


def imports(room: Path) -> Iterator[str]:
    """The packages that the files of a room import, wherever they do."""
    for path in room.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module.partition(".")[0]


def names_of(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", text).group() for text in requirements}


# An extra -> what its room may meet beside it, and asks for itself.
BESIDE = {"peft": set(), "cli": {"peft"}}


@pytest.mark.parametrize("extra", BESIDE)
def test_an_extra_has_all_that_its_room_imports(extra):
    extras = PROJECT["optional-dependencies"]
    given = names_of(PROJECT["dependencies"] + extras[extra]) | BESIDE[extra]
    own = {"sparse_ft", "sparse_ft_command"} | set(sys.stdlib_module_names)
    wanted = {DISTRIBUTIONS.get(name, name) for name in imports(PACKAGE / extra)} - own
    assert wanted <= given, wanted - given
