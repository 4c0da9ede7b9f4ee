"""Launches of kernels that are compiled already: Triton looks at every argument of a launch to find
the kernel that was compiled for what it sees, which takes the host longer than the launch itself.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

ALIGNED = 16  # bytes, and what Triton asks whether numbers are multiples of
# {(kernel, device, what it was compiled for): (what Triton compiled, names of its constants)}
_compiled: dict[tuple, tuple[Any, list[str]]] = {}


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """`kernel[grid](*arguments, **constants)` on the current device.

    arguments: tensors and integers, perhaps in tuples. constants: all that the kernel has, and
    options of the compiler.
    """
    key = _key(kernel, arguments, constants)
    found = _compiled.get(key)
    if found is not None:
        compiled, names = found
        compiled[_sizes(grid)](*arguments, *[constants[name] for name in names])
        return
    compiled = kernel[grid](*arguments, **constants)
    if hasattr(compiled, "launch_metadata"):  # an interpreted kernel gives nothing back
        _compiled[key] = compiled, [name for name in kernel.arg_names if name in constants]


def relaunch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any
) -> Callable[..., None]:
    """Who launches again what `launch` has launched with these, on the device that was current.

    It takes the arguments alone: others of the same kinds (`kinds_of`), which it does not look at.
    """
    found = _compiled.get(_key(kernel, arguments, constants))
    if found is None:  # interpreted
        return functools.partial(kernel[grid], **constants)
    compiled, names = found
    launch_compiled = compiled[_sizes(grid)]
    after = [constants[name] for name in names]

    def again(*arguments: Any) -> None:
        launch_compiled(*arguments, *after)

    return again


def _key(kernel: Any, arguments: tuple, constants: dict[str, Any]) -> tuple:
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    return kernel, device, kinds_of(arguments), tuple(constants.items())


def _sizes(grid: tuple[int, ...]) -> tuple[int, ...]:
    """Of a grid in three dimensions."""
    return (*grid, 1, 1)[:3]


def kinds_of(arguments: tuple) -> tuple:
    """What Triton compiles for: of a tensor its dtype and whether it is aligned; of a number
    whether it is 1 or a multiple of 16, and how wide it is.
    """
    kinds = []
    for each in arguments:
        if isinstance(each, torch.Tensor):
            kinds.append((each.dtype, each.data_ptr() % ALIGNED == 0))
        elif isinstance(each, tuple):
            kinds.append(kinds_of(each))
        else:
            kinds.append((each == 1, each % ALIGNED == 0, -(1 << 31) <= each < 1 << 31))
    return tuple(kinds)
