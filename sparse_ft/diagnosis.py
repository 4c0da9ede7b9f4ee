"""backends: which implementation serves each op on each device, and why."""

import platform
import sys

import torch

from . import ops
from ._torch import MISSING
from .ops import _native
from .ops._library import HAS_TRITON
from .texts import aligned


class Backends(dict):
    """{op: {device: (implementation, why)}}; prints as a table."""

    def __str__(self) -> str:
        lines = [("op", "device", "served by", "why")]
        lines += [
            (op, device, *served)
            for op, devices in self.items()
            for device, served in devices.items()
        ]
        return "\n".join(aligned(lines))

    __repr__ = __str__


def backends() -> Backends:
    """Which implementation serves each op on each device, and why.

    Returns a mapping that prints as a table.
    """
    known = {op: served() if callable(served) else served for op, served in ops.SERVED.items()}
    why_not_cuda = _native.why_not_on_some_gpu()
    return Backends({op: _here(served, why_not_cuda) for op, served in known.items()})


def _here(served: dict[str, tuple[str, str]], why_not_cuda: str) -> dict[str, tuple[str, str]]:
    """What serves an op on this machine, where compiled CUDA kernels may not run."""
    found = dict(served)
    if why_not_cuda and found["cuda"][0] == "cuda":
        found["cuda"] = "triton" if HAS_TRITON else "reference", why_not_cuda
    return found


def diagnosis() -> str:
    """Versions, CPU features, GPU and backends, as text: what a bug report needs."""
    from . import __version__

    lines = [
        (
            f"sparse_ft {__version__}, torch {torch.__version__}, Python"
            f" {platform.python_version()} on {platform.machine()} {sys.platform}"
        ),
        (
            f"threads: {torch.get_num_threads()}, CPU capability of torch:"
            f" {torch.backends.cpu.get_cpu_capability()}"
        ),
    ]
    if _native.C is None:
        lines.append(f"compiled part: none ({_native.WHY_NOT})")
    else:
        lines += [f"compiled part, {key}: {value}" for key, value in _native.C.build_info().items()]
    try:
        import triton

        lines.append(f"triton {triton.__version__}")
    except ImportError:
        lines.append("triton: not installed")
    if torch.cuda.is_available():
        lines += [
            f"GPU {i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())
        ]
    else:
        lines.append("GPU: none that torch can use")
    if MISSING:
        lines.append(
            f"private names of torch that are missing: {', '.join(MISSING)}; slower ways serve"
        )
    return "\n".join([*lines, "", str(backends())])
