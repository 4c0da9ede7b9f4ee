"""Launchers of `sparse_ft.kernels`, by name: nothing of Triton is imported before one is called."""

import functools
import importlib
from collections.abc import Callable
from typing import Any


def launcher(path: str) -> Callable[..., Any]:
    """`file.function` of `sparse_ft.kernels`, imported at its first call: triton takes a second."""

    def launch(*arguments: Any, **keywords: Any) -> Any:
        return _launcher(path)(*arguments, **keywords)

    return launch


@functools.cache
def _launcher(path: str) -> Callable[..., Any]:
    file, _, name = path.partition(".")
    return getattr(importlib.import_module(f"sparse_ft.kernels.{file}"), name)
