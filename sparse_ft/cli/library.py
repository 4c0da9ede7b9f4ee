"""The libraries that a command imports when it comes to need them."""

import importlib
import os
import sys
import warnings
from typing import Any

from .misuse import Misuse


def sparse_ft() -> Any:
    """The package `sparse_ft` with all its names.

    `sparse_ft_command` has put it into place before its `__init__` was run.
    """
    package: Any = sys.modules["sparse_ft"]
    if not hasattr(package, "__all__"):
        package.__spec__.loader.exec_module(package)
    return package


def transformers() -> Any:
    """transformers, off the network and without its own progress bars and advice."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    library = needed("transformers", "cli")
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    return library


def needed(name: str, extra: str, key: str = "") -> Any:
    """The module `name`, of the extra `extra`; `key`: what of the config asks for it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        asks = f"{key}: it" if key else "this command"
        raise Misuse(
            f"{asks} needs {name}, which cannot be imported ({error}): pip install"
            f" sparse_ft[{extra}]"
        ) from None
