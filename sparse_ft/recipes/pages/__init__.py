"""Recipes that are a process, a page each: what trains, or what it is, changes on the way.

Every file of this folder is read for the recipes it holds.
"""

import importlib
import pkgutil

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
