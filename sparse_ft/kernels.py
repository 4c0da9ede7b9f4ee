"""`sparse_ft.kernels`: Triton kernels and launchers, one file an op; layout.py holds their index
walk.

Once installed, the files lie in the folder beside this one; in a checkout, in the top level's
`kernels/`. No `__init__.py` is there: it would hide the public package `kernels`, which
transformers imports, from whatever runs in the checkout. A folder without one gives way to a
package of its name, wherever that is on `sys.path`.
"""

from pathlib import Path

_INSTALLED = Path(__file__).resolve().with_suffix("")
_FOLDERS = (_INSTALLED, _INSTALLED.parents[1] / "kernels")

# A module with a __path__ is a package: its submodules are looked for in these folders.
__path__ = [str(folder) for folder in _FOLDERS if (folder / "layout.py").is_file()][:1]
