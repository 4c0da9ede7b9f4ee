"""A dry run: ops give tensors of the right shape and no data, except small integers, whose values
decide what a model does.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .._torch import (
    GROUPED_MM,
    ITEM,
    FakeCopyMode,
    FakeTensor,
    FakeTensorMode,
    TorchDispatchMode,
    key_of,
    unset_fake_temporarily,
    writes,
)
from ..nn.foreign import PLAIN
from ..quantised.quantiser import quantiser_of
from ..trees import leaves

PLAIN.add(FakeTensor)  # computes shapes as torch.Tensor does numbers

EQUAL = torch.ops.aten.equal.default
NONZERO = torch.ops.aten.nonzero.default
SMALL = 1 << 20  # elements up to which integers are computed


class Dry(contextlib.ExitStack):
    """While entered, tensors that are made have no data.

    `copy(model)` gives a model without data to run in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def __enter__(self) -> "Dry":
        super().__enter__()
        for mode in (self.mode, _Integers(self.mode), _Addresses()):
            self.enter_context(mode)
        return self

    def copy(self, model: nn.Module) -> nn.Module:
        """A deep copy of a model whose parameters and buffers have no data; tied ones stay tied."""
        with unset_fake_temporarily(), FakeCopyMode(self.mode):
            twin = copy.deepcopy(model, _stand_ins(model))
        self.mode.fake_tensor_converter.meta_converter.tensor_memo.clear()
        if any(p.device.type == "meta" for p in twin.parameters()):
            with self.mode:
                twin.to_empty(device="cpu")
        return twin

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor without data that is like `tensor`.

        Integers, which may decide what a model does, keep theirs.
        """
        return self.mode.from_tensor(tensor) if tensor.is_floating_point() else tensor

    def integers(
        self, *shape: int, device: torch.device, dtype: torch.dtype = torch.int64
    ) -> torch.Tensor:
        """An index without data."""
        return FakeTensor(self.mode, torch.empty(shape, dtype=dtype, device="meta"), device)


def _stand_ins(model: nn.Module) -> dict[int, Any]:
    """A memo for `copy.deepcopy`: {id of a module: what stands for it}, copied already."""
    found = {}
    for module in model.modules():
        quantiser = quantiser_of(module)
        stand_in = None if quantiser is None else quantiser.without_data(module)
        if stand_in is not None:
            found[id(module)] = copy.deepcopy(stand_in)
    return found


class _Integers(TorchDispatchMode):
    """Integers made of integers alone have their values.

    Positions, masks and lengths, which control flow may look at.
    """

    def __init__(self, mode: Any) -> None:
        super().__init__()
        self.memo = mode.fake_tensor_converter.meta_converter.tensor_memo

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func.namespace == "prim":  # asks for a device
            return func(*args, **(kwargs or {}))
        try:
            return self._run(func, args, kwargs or {})
        finally:
            self.memo.clear()  # weak references, with which `module.to(dtype)` refuses to go

    def _run(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        inputs = [t for t in leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if any(isinstance(t, FakeTensor) for t in inputs):
            return _KERNELS.get(func, func)(*args, **kwargs)
        if not writes(func) and func not in (ITEM, EQUAL, NONZERO):
            out = func(*args, **kwargs)
            if not all(_is_small_integer(t) for t in leaves(out) if isinstance(t, torch.Tensor)):
                return out
        with unset_fake_temporarily():
            return func(*args, **kwargs)


def _grouped_mm(
    mat_a: torch.Tensor,
    mat_b: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """torch's shape function knows bf16 only, the CPU's kernel any floating dtype."""
    shape = [*mat_a.shape[:-1], mat_b.size(-1)]
    if mat_a.dim() == mat_b.dim() == 2 and offs is not None:
        shape = [offs.size(0), *shape]
    elif mat_a.dim() == 3 and mat_b.dim() == 2:
        shape = shape[1:]
    return mat_a.new_empty(shape, dtype=out_dtype or mat_a.dtype)


def _item(tensor: torch.Tensor) -> Any:
    """A floating-point number that is read is a scale or a loss to print, and any will do.

    What is counted is not known.
    """
    return 1.0 if tensor.is_floating_point() else ITEM(tensor)


def _equal(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Nobody has written anything else where there is no data."""
    return True


def _nonzero(tensor: torch.Tensor) -> torch.Tensor:
    """Of a mask without data every element counts, the most that there can be."""
    return tensor.new_empty((tensor.numel(), tensor.dim()), dtype=torch.int64)


# None, of a torch without one, is no operator
_KERNELS = {GROUPED_MM: _grouped_mm, ITEM: _item, EQUAL: _equal, NONZERO: _nonzero}


def _is_small_integer(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex() and tensor.numel() <= SMALL


class _Addresses(TorchFunctionMode):
    """A tensor without data has no address; its storage tells it from others as well."""

    def __torch_function__(
        self,
        func: Callable,
        types: Iterable[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.data_ptr and isinstance(args[0], FakeTensor):
            tensor: Any = args[0]
            offset = tensor.storage_offset() * tensor.element_size()
            return key_of(tensor.untyped_storage()) + offset
        return func(*args, **(kwargs or {}))
