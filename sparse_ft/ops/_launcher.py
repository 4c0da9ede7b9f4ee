"""Launchers of `sparse_ft.kernels`, by name: nothing of Triton is imported before one is called."""

import importlib
from collections.abc import Callable
from typing import Any


def launcher(path: str) -> Callable[..., Any]:
    """`file.function` of `sparse_ft.kernels`, imported at its first call: triton takes a second."""

    found: Callable[..., Any] | None = None

    def launch(*arguments: Any, **keywords: Any) -> Any:
        nonlocal found
        if found is None:
            found = _imported(path)
        return found(*arguments, **keywords)

    return launch


def _imported(path: str) -> Callable[..., Any]:
    file, _, name = path.partition(".")
    return getattr(importlib.import_module(f"sparse_ft.kernels.{file}"), name)
