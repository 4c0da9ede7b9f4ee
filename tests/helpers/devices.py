"""What a test makes lies on the device that it is for, without a word of it in the test."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import sparse_ft
from sparse_ft.trees import leaves, map_leaves

TESTS = str(Path(__file__).parents[1])
LIBRARY = str(Path(sparse_ft.__file__).parent)
CPU = torch.device("cpu")
DRAWS = {torch.rand, torch.randn, torch.randint, torch.randperm}
FILLS = {torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.random_} | {
    nn.init.uniform_,
    nn.init.normal_,
    nn.init.kaiming_uniform_,
}


class MadeByTests(TorchFunctionMode):
    """A default device for the calls that a test makes, and none for those of the library.

    Random numbers are the CPU's on every device, and so are the initial weights of models: what a
    test expects of them hangs on the numbers.
    """

    holds_nothing = True

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not is_called_by_test():
            return function(*args, **kwargs)
        generator = kwargs.get("generator")
        if function in DRAWS and kwargs.get("device") is None and "out" not in kwargs:
            place = CPU if generator is None else generator.device
            return on(self.device, function(*args, **{**kwargs, "device": place}))
        if function in FILLS and generator is None:
            return self._filled(function, args, kwargs)
        with self.device:
            return function(*args, **kwargs)

    def _filled(self, function: Callable, args: tuple, kwargs: dict) -> torch.Tensor:
        """The tensor, with numbers that were drawn on the CPU if it is elsewhere."""
        filled = args[0] if args else kwargs["tensor"]
        if filled.device.type != self.device.type:
            return function(*args, **kwargs)
        drawn = torch.empty_like(filled, device=CPU, requires_grad=False)
        if args:
            function(drawn, *args[1:], **kwargs)
        else:
            function(**{**kwargs, "tensor": drawn})
        with torch.no_grad():
            filled.copy_(drawn)
        return filled


def is_called_by_test() -> bool:
    """Whether a test comes before the library among those who wait for this call to return."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(LIBRARY):
            return False
        if file.startswith(TESTS) and file != __file__:
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def moved_to(
    device: torch.device, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Within, the tensors at the top of a test's file and of the helpers, and those that it is
    given as parameters, lie on a device; convolutions are in fp32.
    """
    helpers = [module for name, module in sys.modules.items() if name.startswith("helpers.")]
    for module in [request.module, *helpers]:
        for name, value in list(vars(module).items()):
            if _has_tensors(value):
                monkeypatch.setattr(module, name, on(device, value))
    given = getattr(request.node, "callspec", None)
    for name, value in list(given.params.items() if given else ()):
        if _has_tensors(value):
            monkeypatch.setitem(given.params, name, on(device, value))
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _has_tensors(tree: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in leaves(tree))


def on(device: torch.device, tree: Any) -> Any:
    """The tree with its tensors on a device, leaves of the graph as they were."""

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return leaf.detach().to(device).requires_grad_(leaf.requires_grad)

    return map_leaves(moved, tree)
