"""Lets `import torchvision` and `import timm` work beside a torch that has no CUDA.

The registry's wheel of torchvision is linked against CUDA's libraries. Without them its compiled
operators are missing, importing it stops at the first of them, and so does transformers, which
imports it where it finds it. `make test` puts both packages into a folder of their own beside
site-packages, where only the tests look.
"""

import importlib.util
import sys
from pathlib import Path

import torch

FOLDER = Path(sys.prefix) / "vision"
SUPPRESSION = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
OPERATORS = f"nms{SUPPRESSION}", f"qnms{SUPPRESSION}"
_declared = []  # a torch.library.Library takes its operators back when it goes


def make_importable() -> None:
    """Put the folder at the end of the path, and declare (without a body) the operators that
    torchvision's import asks for.

    No model of torchvision needs them. Does nothing where torchvision is not installed, or whole.
    """
    if FOLDER.is_dir() and str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    if importlib.util.find_spec("torchvision") is None or _declared or _loads():
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in OPERATORS:
        library.define(operator)
    _declared.append(library)


def _loads() -> bool:
    """Whether torchvision's own operators can be loaded."""
    package = Path(importlib.util.find_spec("torchvision").origin).parent
    for compiled in package.glob("_C*.so"):
        try:
            torch.ops.load_library(str(compiled))
        except OSError:
            return False
    return True
