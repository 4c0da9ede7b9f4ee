"""The operator namespace `sparse_ft` of torch.library: which backend serves each op where, and who
may go round the dispatcher.
"""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from .._torch import is_undisturbed
from ..trees import leaves, map_leaves
from . import _native
from ._schema import parse

Implementation = Callable[..., Any]
# {device: (implementation, why)}
Served = dict[str, tuple[str, str]]

LIBRARY = torch.library.Library("sparse_ft", "DEF")
NAMES: dict[str, list[str]] = {}  # op -> the names of its arguments
SERVED: dict[str, Served | Callable[[], Served]] = {}  # op -> what serves it, or who finds it out

_ORDINARY = torch.Tensor, torch.nn.Parameter
HAS_TRITON = importlib.util.find_spec("triton") is not None
OTHER_DEVICES = "reference", "plain PyTorch serves every other device"


def define(schema: str, *, fake: Implementation) -> None:
    """Declare one op by its schema string and give its shape function."""
    LIBRARY.define(schema, tags=(torch.Tag.needs_fixed_stride_order,))
    name, arguments, _ = parse(schema)
    torch.library.register_fake(f"sparse_ft::{name}", fake, lib=LIBRARY)
    NAMES[name] = [argument.name for argument in arguments]
    written = [argument.name for argument in arguments if argument.is_written]
    if written:
        # torch's own way with the negative bit is for ops that return what they wrote to.
        LIBRARY.impl(name, _resolving(name, written), "Negative")


def _resolving(op: str, written: list[str]) -> Implementation:
    """What serves `op` where a tensor has the lazy negative bit set: tensors without it are handed
    on, results copied back.
    """

    def call(*positional: Any, **keywords: Any) -> Any:
        given = _by_name(op, positional, keywords)
        resolved = map_leaves(_resolved, given)
        result = getattr(torch.ops.sparse_ft, op)(**resolved)
        for name in written:
            for lazy, tensor in zip(leaves(given.get(name)), leaves(resolved.get(name))):
                if lazy is not tensor:
                    lazy.copy_(tensor)
        return result

    return call


def _by_name(op: str, positional: tuple, keywords: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(NAMES[op], positional)), **keywords}


def _resolved(argument: Any) -> Any:
    return argument.resolve_neg() if isinstance(argument, torch.Tensor) else argument


def _of_dense(op: str, reference: Implementation) -> Implementation:
    """The reference for devices that have nothing better, and for what is no dense tensor, which is
    refused by name.
    """

    def call(*positional: Any, **keywords: Any) -> Any:
        for name, given in _by_name(op, positional, keywords).items():
            for tensor in given if isinstance(given, (list, tuple)) else (given,):
                if isinstance(tensor, torch.Tensor) and not _is_dense(tensor):
                    refuse_layout(name, tensor)
        return reference(*positional, **keywords)

    return call


def _is_dense(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested


def refuse_layout(name: str, tensor: torch.Tensor) -> NoReturn:
    """Raise the TypeError for a tensor that is not dense."""
    if tensor.is_nested:
        raise TypeError(
            f"{name}: expected a dense tensor, got a nested one; torch.nested.to_padded_tensor"
            " makes one of it"
        )
    raise TypeError(
        f"{name}: expected a dense tensor, got one of layout {tensor.layout}; {name}.to_dense()"
        " makes one of it"
    )


def implement(
    op: str,
    *,
    reference: Implementation,
    cpu: Implementation,
    triton: Implementation,
    cuda: Implementation | None = None,
) -> Implementation:
    """Register exactly one implementation per device; the plain PyTorch `reference` serves whatever
    is left.

    `cpu` and `cuda` run the compiled part, `triton` launches a Triton kernel; each is used only
    where its toolchain is present, and on a GPU `cuda` comes before `triton`. Returns the one of
    the CPU, for `plain`.
    """
    on_cpu, cpu_served = reference, ("reference", _native.WHY_NOT)
    if _native.C is not None:
        on_cpu, cpu_served = cpu, ("native", _native.describe())
    on_gpu, gpu_served = reference, ("reference", "triton is not installed")
    if cuda is not None and _native.CUDA:
        on_gpu, gpu_served = cuda, ("cuda", _native.describe_cuda())
    elif HAS_TRITON:
        on_gpu, gpu_served = triton, ("triton", "triton is installed")
    elsewhere = _of_dense(op, reference)
    LIBRARY.impl(op, elsewhere, "CompositeExplicitAutograd")
    LIBRARY.impl(op, elsewhere, "AutogradNestedTensor")
    LIBRARY.impl(op, elsewhere, "NestedTensorCPU")
    LIBRARY.impl(op, elsewhere, "NestedTensorCUDA")
    LIBRARY.impl(op, on_cpu, "CPU")
    LIBRARY.impl(op, on_gpu, "CUDA")
    SERVED[op] = {"cpu": cpu_served, "cuda": gpu_served, "other": OTHER_DEVICES}
    return on_cpu


def memory_of(tensors: Sequence[torch.Tensor], optional: Sequence[torch.Tensor | None] = ()) -> str:
    """Where tensors lie for which the dispatcher need not be asked, who takes 3 µs, and 30 for
    lists: "cpu" or "cuda"; "" where it must be.

    For tensors whose numbers are what lies in their memory, all on one kind of device, where
    `is_undisturbed`. The dispatcher must see to everything else first: a lazy negative bit (the
    memory holds the opposite numbers); zeros without memory (`torch._efficientzerotensor`) and
    functional tensors, whose address is 0; sparse and opaque tensors, which have none; nested ones;
    and subclasses. Of `optional`, None is passed over.
    """
    if not is_undisturbed():
        return ""
    try:
        for t in tensors:  # `_is_ordinary`, in half of the time
            if type(t) not in _ORDINARY or t.is_neg() or t.is_nested:
                return ""
            if not t.is_cpu:
                return _on_gpu(tensors, optional)
            if not t.data_ptr() and t.numel():
                return ""
        for maybe in optional:
            if maybe is not None and not (maybe.is_cpu and _is_ordinary(maybe)):
                return ""
    except RuntimeError:  # of data_ptr: no address
        return ""
    return "cpu"


def _on_gpu(tensors: Sequence[torch.Tensor], optional: Sequence[torch.Tensor | None]) -> str:
    for t in tensors:  # `_is_ordinary`, in half of the time
        if type(t) not in _ORDINARY or t.is_neg() or t.is_nested or not t.is_cuda:
            return ""
        if not t.data_ptr() and t.numel():
            return ""
    for maybe in optional:
        if maybe is not None and not (maybe.is_cuda and _is_ordinary(maybe)):
            return ""
    return "cuda"


def _is_ordinary(t: torch.Tensor) -> bool:
    if type(t) not in _ORDINARY or t.is_neg() or t.is_nested:
        return False
    return bool(t.data_ptr()) or not t.numel()


def plain(tensors: Sequence[torch.Tensor], optional: Sequence[torch.Tensor | None] = ()) -> bool:
    """Whether the implementation for the CPU may be called without the dispatcher: see
    `memory_of`.
    """
    return memory_of(tensors, optional) == "cpu"


def is_tracked(tensors: tuple, optional: tuple = ()) -> bool:
    """Whether autograd would follow one of these: the dispatcher tells it that no op is
    differentiable.
    """
    return any(t is not None and t.requires_grad for t in (*tensors, *optional))


def wrote(*tensors: torch.Tensor) -> None:
    """Tell autograd that `tensors` changed in place: a kernel that writes through a pointer leaves
    no other trace.
    """
    torch.autograd.graph.increment_version(tensors)
