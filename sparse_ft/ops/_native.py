"""The compiled part, `sparse_ft._C`: whether it is there, and which tensors it takes."""

import contextlib
import importlib
import warnings
from typing import Any

import torch

C: Any = None
WHY_NOT = ""
try:
    C = importlib.import_module("sparse_ft._C")
except ImportError as error:
    WHY_NOT = (
        f"the compiled part is missing ({error}); reinstall with a C++ compiler, or run `pip"
        " install -e .`"
    )
    with contextlib.suppress(ImportError):
        WHY_NOT = importlib.import_module("sparse_ft._build_info").REASON or WHY_NOT
    warnings.warn(
        "sparse_ft has no compiled part: every op runs in plain PyTorch, which is slower. Reason:"
        f" {WHY_NOT}\n`python -m sparse_ft` shows what serves each op.",
        RuntimeWarning,
        stacklevel=1,
    )

CUDA = C is not None and C.build_info()["cuda"]


class _Unserved(TypeError):
    """Raised by a backend, before it wrote anything, for arguments that it does not take."""


# The compiled part raises its own for a dtype that it does not know.
Unserved: type[TypeError] = _Unserved if C is None else C.Unserved

DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
# By dimensions: memory formats besides the contiguous one.
_DENSE = {4: [torch.channels_last], 5: [torch.channels_last_3d]}


def describe() -> str:
    """One line on the compiled part in use: the instruction set chosen for this CPU."""
    return f"compiled, {C.build_info()['cpu_variant']} instructions"


def describe_cuda() -> str:
    """One line on the compiled CUDA kernels: the architectures they were built for."""
    return f"compiled for {', '.join(C.build_info()['cuda_architectures'])}"


def require_served(*tensors: torch.Tensor) -> None:
    """Raise `Unserved` unless the native core takes these tensors as they are: contiguous, of a
    dtype that it knows.
    """
    for tensor in tensors:
        if not tensor.is_contiguous() or tensor.dtype not in DTYPES:
            raise Unserved(tensor)


def alike(first: torch.Tensor, *others: torch.Tensor) -> bool:
    """Whether elementwise work on these may walk their memory in order: one shape, dtype and dense
    layout.
    """
    shape, dtype, stride = first.shape, first.dtype, first.stride()
    for other in others:
        if other.shape != shape or other.dtype is not dtype or other.stride() != stride:
            return False
    return first.is_contiguous() or any(
        first.is_contiguous(memory_format=f) for f in _DENSE.get(len(shape), ())
    )
