"""python -m bench.gpu_pybind11 FOLDER: a stand-in for the package pybind11, made of the headers
that torch carries.

For a build on a machine without it: FOLDER on the PYTHONPATH gives setup.py its CMake folder, and
CMake its one function.
"""

import importlib.util
import sys
from pathlib import Path

CMAKE = """# pybind11_add_module on torch's headers
function(pybind11_add_module name)
  list(REMOVE_ITEM ARGN MODULE NO_EXTRAS)
  Python_add_library(${{name}} MODULE WITH_SOABI ${{ARGN}})
  target_include_directories(${{name}} SYSTEM PRIVATE "{headers}")
endfunction()
set(pybind11_FOUND TRUE)
"""
PACKAGE = '''"""Written by bench.gpu_pybind11."""

from pathlib import Path


def get_cmake_dir():
    return str(Path(__file__).parent)
'''


def write(folder):
    """The package in `folder`; raises FileNotFoundError where torch carries no headers."""
    headers = Path(importlib.util.find_spec("torch").origin).parent / "include"
    if not (headers / "pybind11" / "pybind11.h").exists():
        raise FileNotFoundError(
            f"pybind11: not installed, and torch has no headers of it in {headers}"
        )
    package = Path(folder) / "pybind11"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(PACKAGE)
    (package / "pybind11Config.cmake").write_text(CMAKE.format(headers=headers.as_posix()))
    return package


if __name__ == "__main__":
    write(sys.argv[1])
