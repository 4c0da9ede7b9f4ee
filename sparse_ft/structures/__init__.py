"""The structures: which entries of a matrix may be selected together, one file each.

A file holds all that depends on the kind: the public `Selection`, how its values are laid out
(`ops.layout.Structure`), and the weight gradient in plain PyTorch. Every file of this folder is
read; a class that names its `kind` is a structure.
"""

import importlib
import pkgutil

from ..ops.layout import STRUCTURES
from .selection import SELECTIONS, Selection

FIRST = ("rows", "columns", "blocks", "entries")  # as messages list them; what is new comes behind

_files = [file.name for file in pkgutil.iter_modules(__path__)]
for _file in dict.fromkeys([*FIRST, *_files]):
    importlib.import_module(f"{__name__}.{_file}")

__all__ = ["SELECTIONS", "STRUCTURES", "Selection"]
