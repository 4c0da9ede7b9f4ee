"""A kernel that is compiled is launched without Triton's look at its arguments; one for other
arguments is another.
"""

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from sparse_ft.kernels import launching  # noqa: E402


class Compiled:
    """What Triton gives back."""

    def __init__(self, kernel: "Kernel") -> None:
        self.kernel = kernel

    def launch_metadata(self) -> None: ...

    def __getitem__(self, grid: tuple[int, ...]):
        return lambda *arguments: self.kernel.launched.append((grid, arguments))


class Kernel:
    """In the place of a kernel of Triton's."""

    arg_names = ["x_ptr", "n", "BLOCK", "KIND"]

    def __init__(self) -> None:
        self.compiled: list[dict] = []
        self.launched: list[tuple] = []

    def __getitem__(self, grid: tuple[int, ...]):
        def run(*arguments: object, **constants: object) -> Compiled:
            self.compiled.append(constants)
            return Compiled(self)

        return run


def test_it_is_compiled_once_for_what_triton_compiles_for() -> None:
    kernel, x = Kernel(), torch.zeros(64)

    def launch(x: torch.Tensor, n: int, kind: str = "rows") -> None:
        launching.launch(kernel, (2,), x, n, KIND=kind, BLOCK=32, num_warps=4)

    for n in (3, 5, 7):
        launch(x, n)
    assert len(kernel.compiled) == 1
    # the kernel's own order, without the compiler's options
    assert kernel.launched[0] == ((2, 1, 1), (x, 5, 32, "rows"))
    others = [(x, 1), (x, 16), (x, 1 << 40), (x[1:], 3), (x.double(), 3), (x, 3, "columns")]
    for number, other in enumerate(others, 2):
        launch(*other)
        assert len(kernel.compiled) == number, other
    for other in others:
        launch(*other)
    assert len(kernel.compiled) == 1 + len(others)


def test_tuples_are_looked_into() -> None:
    x = torch.zeros(64)
    kinds = launching.kinds_of(((x, 3), (x, 5)))
    assert kinds == launching.kinds_of(((x, 7), (x, 9)))
    assert kinds != launching.kinds_of(((x, 3), (x[1:], 5)))
    assert kinds != launching.kinds_of(((x, 3), (x, 16)))


def test_launched_again_it_takes_other_arguments_of_the_same_kinds() -> None:
    kernel, x, y = Kernel(), torch.zeros(64), torch.ones(64)
    constants = dict(KIND="rows", BLOCK=32, num_warps=4)
    launching.launch(kernel, (2,), x, 3, **constants)
    again = launching.relaunch(kernel, (5, 7), x, 3, **constants)
    again(y, 9)
    assert kernel.launched == [((5, 7, 1), (y, 9, 32, "rows"))]
    assert len(kernel.compiled) == 1


def test_a_kernel_that_was_not_compiled_is_launched_as_it_is() -> None:
    """As one that is interpreted."""
    kernel, x = Kernel(), torch.zeros(64)
    launching.relaunch(kernel, (2,), x, 3, KIND="rows", BLOCK=32)(x, 5)
    assert kernel.compiled == [dict(KIND="rows", BLOCK=32)] and not kernel.launched
