"""The operator namespace `sparse_ft` of torch.library: one place that defines ops and says which
backend serves each.
"""

import importlib.util

import torch

from .._torch import is_undisturbed
from ..trees import leaves, map_leaves
from . import _native

LIBRARY = torch.library.Library("sparse_ft", "DEF")
NAMES = {}  # op -> the names of its arguments
SERVED = {}  # op -> {device: (implementation, why)}, or a function that finds it out when asked

_ORDINARY = torch.Tensor, torch.nn.Parameter
HAS_TRITON = importlib.util.find_spec("triton") is not None


def define(schema, *, fake):
    """Declare one op by its schema string and give its shape function."""
    LIBRARY.define(schema, tags=(torch.Tag.needs_fixed_stride_order,))
    name = schema.split("(", 1)[0]
    torch.library.register_fake(f"sparse_ft::{name}", fake, lib=LIBRARY)
    NAMES[name], written = _arguments(schema)
    if written:  # torch's own way with the negative bit is for ops that return what they wrote to
        LIBRARY.impl(name, _resolving(name, written), "Negative")


def _arguments(schema):
    """The names of an op's arguments, and of those among them that it writes to, from its schema
    string.
    """
    listed = schema.split("(", 1)[1].rsplit(" -> ", 1)[0].removesuffix(")").split(", ")
    named = {
        argument.partition("=")[0].split(" ")[-1]: argument
        for argument in listed
        if argument != "*"
    }
    return list(named), [name for name, argument in named.items() if "!" in argument]


def _resolving(op, written):
    """What serves `op` where a tensor has the lazy negative bit set: tensors without it are handed
    on, results copied back.
    """

    def call(*positional, **keywords):
        given = {**dict(zip(NAMES[op], positional)), **keywords}
        resolved = map_leaves(_resolved, given)
        result = getattr(torch.ops.sparse_ft, op)(**resolved)
        for name in written:
            for lazy, tensor in zip(leaves(given.get(name)), leaves(resolved.get(name))):
                if lazy is not tensor:
                    lazy.copy_(tensor)
        return result

    return call


def _of_dense(op, reference):
    """The reference for devices that have nothing better, and for what is no dense tensor, which is
    refused by name.
    """

    def call(*positional, **keywords):
        for name, given in {**dict(zip(NAMES[op], positional)), **keywords}.items():
            for tensor in given if isinstance(given, (list, tuple)) else (given,):
                if isinstance(tensor, torch.Tensor) and (
                    tensor.layout is not torch.strided or tensor.is_nested
                ):
                    refuse_layout(name, tensor)
        return reference(*positional, **keywords)

    return call


def refuse_layout(name, tensor):
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


def _resolved(argument):
    return argument.resolve_neg() if isinstance(argument, torch.Tensor) else argument


def implement(op, *, reference, cpu, triton, cuda=None):
    """Register exactly one implementation per device; the plain PyTorch `reference` serves whatever
    is left.

    `cpu` and `cuda` run the compiled part, `triton` launches a Triton kernel; each is used only
    where its toolchain is present, and on a GPU `cuda` comes before `triton`. Returns the one of
    the CPU, for `plain`.
    """
    on_cpu = (
        (cpu, "native", _native.describe())
        if _native.C is not None
        else (reference, "reference", _native.WHY_NOT)
    )
    on_gpu = (reference, "reference", "triton is not installed")
    if cuda is not None and _native.CUDA:
        on_gpu = cuda, "cuda", _native.describe_cuda()
    elif HAS_TRITON:
        on_gpu = triton, "triton", "triton is installed"
    for key in (
        "CompositeExplicitAutograd",
        "AutogradNestedTensor",
        "NestedTensorCPU",
        "NestedTensorCUDA",
    ):
        LIBRARY.impl(op, _of_dense(op, reference), key)
    LIBRARY.impl(op, on_cpu[0], "CPU")
    LIBRARY.impl(op, on_gpu[0], "CUDA")
    SERVED[op] = {
        "cpu": on_cpu[1:],
        "cuda": on_gpu[1:],
        "other": ("reference", "plain PyTorch serves every other device"),
    }
    return on_cpu[0]


def plain(tensors):
    """Whether the implementation for the CPU may be called without the dispatcher, which takes 30
    µs for lists of tensors.

    True where `is_undisturbed` for tensors in host memory whose numbers are what lies there. The
    dispatcher must see to everything else first: a lazy negative bit (the memory holds the opposite
    numbers); zeros without memory (`torch._efficientzerotensor`) and functional tensors, whose
    address is 0; sparse and opaque tensors, which have none; nested ones; and subclasses.
    """
    if not is_undisturbed():
        return False
    try:
        for t in tensors:  # all(...) over a generator takes 0.5 µs more
            if type(t) not in _ORDINARY or not t.is_cpu or t.is_neg() or t.is_nested:
                return False
            if not t.data_ptr() and t.numel():
                return False
    except RuntimeError:  # of data_ptr: no address
        return False
    return True


def wrote(*tensors):
    """Tell autograd that `tensors` changed in place: a kernel that writes through a pointer leaves
    no other trace.
    """
    torch.autograd.graph.increment_version(tensors)
