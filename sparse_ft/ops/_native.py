"""The compiled part, `sparse_ft._C`: whether it is there, and which tensors it takes."""

import contextlib
import functools
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


@functools.cache
def why_not_on(index: int) -> str:
    """Why the compiled CUDA kernels do not run on CUDA device number `index`; "" where they do.

    An older driver, say, or a compute capability that they were not compiled for. Found out at the
    first use of a device, and said once.
    """
    error = C.why_not_on_cuda_device(index)
    if not error:
        return ""
    why = f"{describe_cuda()}, but on {_told(index)} they do not run: {error}"
    warnings.warn(
        f"sparse_ft: CUDA kernels are {why}. Triton serves in their place, plain PyTorch where"
        " there is none. A newer driver, or a build for this device"
        " (SPARSE_FT_CUDA_ARCHITECTURES), mends it; `python -m sparse_ft` shows what serves each"
        " op.",
        RuntimeWarning,
        stacklevel=2,
    )
    return why


def _told(index: int) -> str:
    """GPU 0, Tesla T4 of compute capability 7.5."""
    major, minor = torch.cuda.get_device_capability(index)
    name = torch.cuda.get_device_name(index)
    return f"GPU {index}, {name} of compute capability {major}.{minor},"


def why_not_on_some_gpu() -> str:
    """Why the compiled CUDA kernels do not run on one of the GPUs here; "" where they run on all,
    or there is none.
    """
    if not CUDA or not torch.cuda.is_available():
        return ""
    found = (why_not_on(index) for index in range(torch.cuda.device_count()))
    return next(filter(None, found), "")


def serves(device: torch.device) -> bool:
    """Whether the compiled CUDA kernels run on a CUDA device."""
    if not CUDA:
        return False
    index = torch.cuda.current_device() if device.index is None else device.index
    return not why_not_on(index)


def require_device(device: torch.device) -> None:
    """Raise `Unserved` unless the compiled CUDA kernels run on a CUDA device."""
    if why_not_on(device.index or 0):
        raise Unserved(device)


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
