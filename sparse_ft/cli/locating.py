"""Where a path of a config lies: on disk, or in an installed package."""

import importlib.util
from pathlib import Path

from .misuse import Misuse

PACKAGE = "package:"  # package:NAME/PATH


def located(path: Path, key: str) -> Path:
    """`path`, or what `package:NAME/PATH` means: PATH in the folder of an installed package.

    The package is not imported. key: of the config, for the message where there is none.
    """
    text = str(path)
    if not text.startswith(PACKAGE):
        return path.expanduser()
    name, _, inner = text.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        raise Misuse(
            f"{key}: {text!r}, and no package {name!r} is installed; install it with pip, or give"
            " the path of a file or folder"
        )
    return Path(next(iter(folders))) / inner
