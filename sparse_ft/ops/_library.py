"""The operator namespace `sparse_ft` of torch.library: one place that defines ops and says which backend serves each."""

import importlib.util

import torch

from . import _native

LIBRARY = torch.library.Library("sparse_ft", "DEF")
SERVED = {}  # op -> {device: (implementation, why)}

_HAS_TRITON = importlib.util.find_spec("triton") is not None


def define(schema, *, fake):
    """Declare one op by its schema string and give its shape function."""
    LIBRARY.define(schema, tags=(torch.Tag.needs_fixed_stride_order,))
    name = schema.split("(", 1)[0]
    torch.library.register_fake(f"sparse_ft::{name}", fake, lib=LIBRARY)


def implement(op, *, reference, cpu, cuda):
    """Register exactly one implementation per device; the plain PyTorch `reference` serves whatever is left.

    `cpu` runs the compiled part, `cuda` launches Triton kernels; each is used only where its toolchain is present.
    """
    use_cpu, use_cuda = _native.C is not None, _HAS_TRITON
    LIBRARY.impl(op, reference, "CompositeExplicitAutograd")
    LIBRARY.impl(op, cpu if use_cpu else reference, "CPU")
    LIBRARY.impl(op, cuda if use_cuda else reference, "CUDA")
    SERVED[op] = {
        "cpu": ("native", _native.describe()) if use_cpu else ("reference", _native.WHY_NOT),
        "cuda": ("triton", "triton is installed") if use_cuda else ("reference", "triton is not installed"),
        "other": ("reference", "plain PyTorch serves every other device"),
    }


def wrote(*tensors):
    """Tell autograd that `tensors` changed in place: a kernel that writes through a pointer leaves no other trace."""
    for tensor in tensors:
        if not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)
