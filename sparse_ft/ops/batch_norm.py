"""batch_norm_: BatchNorm by its running statistics, in place, with the ReLU that follows it and one
bit an element.
"""

import torch
import torch.nn.functional as F

from . import _native
from ._channels import check, contiguous, extents, in_order, operand
from ._library import define, implement, plain, wrote
from .positive_bits import positive_bits_ref

SCHEMA = (
    "batch_norm_(Tensor(a!) input, Tensor running_mean, Tensor running_var, Tensor? weight, Tensor?"
    " bias, float eps, bool relu) -> Tensor"
)


def _check(input, running_mean, running_var, weight, bias):
    check(
        "input", input, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias
    )
    if not in_order(input)[1].is_contiguous():
        raise ValueError(
            f"input: expected contiguous or channels last, got shape {tuple(input.shape)},"
            f" {input.stride()}"
        )


def batch_norm_ref_(input, running_mean, running_var, weight, bias, eps, relu):
    _check(input, running_mean, running_var, weight, bias)
    wide = torch.promote_types(torch.float32, input.dtype)
    parameters = [t if t is None else t.to(wide) for t in (running_mean, running_var, weight, bias)]
    output = F.batch_norm(input.to(wide), *parameters, False, 0.0, eps).to(input.dtype)
    bits = positive_bits_ref(in_order(output)[1]) if relu else input.new_empty(0, dtype=torch.uint8)
    input.copy_(output.relu() if relu else output)
    return bits


def _fake(input, running_mean, running_var, weight, bias, eps, relu):
    _check(input, running_mean, running_var, weight, bias)
    return input.new_empty((input.numel() + 7) // 8 if relu else 0, dtype=torch.uint8)


def batch_norm_cpu_(input, running_mean, running_var, weight, bias, eps, relu):
    if not all(
        t is None or t.dtype in _native.DTYPES
        for t in (input, running_mean, running_var, weight, bias)
    ):
        return batch_norm_ref_(input, running_mean, running_var, weight, bias, eps, relu)
    bits = _fake(input, running_mean, running_var, weight, bias, eps, relu)
    of_channels = [contiguous(t) for t in (running_mean, running_var, weight, bias)]
    _native.C.batch_norm_(
        input.data_ptr(),
        _native.DTYPES[input.dtype],
        *extents(input),
        *(number for t in of_channels for number in operand(t)),
        eps,
        bits.data_ptr() if relu else 0,
        torch.get_num_threads(),
    )
    wrote(input)
    return bits


def batch_norm_triton_(input, running_mean, running_var, weight, bias, eps, relu):
    from sparse_ft.kernels import batch_norm as kernels

    bits = _fake(input, running_mean, running_var, weight, bias, eps, relu)
    wide = torch.promote_types(torch.float32, input.dtype)
    scale = (running_var.to(wide) + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    kernels.batch_norm_triton_(
        input, scale.to(wide), shift.to(wide), bits if relu else None, *extents(input)
    )
    wrote(input)
    return bits


define(SCHEMA, fake=_fake)
_batch_norm_ = implement(
    "batch_norm_", reference=batch_norm_ref_, cpu=batch_norm_cpu_, triton=batch_norm_triton_
)


def batch_norm_(input, running_mean, running_var, weight, bias, eps, relu=False):
    """`input.copy_(F.batch_norm(input, running_mean, running_var, weight, bias, False, eps=eps))`,
    with relu `.relu()` of it.

    input: [N, C, ...], floating point, contiguous or channels last. running_mean, running_var,
    weight, bias: [C]; the last two perhaps None. Computed in fp32 (fp64 for fp64) and rounded once
    to the dtype of input. Returns, with relu, uint8 [ceil(numel / 8)], as `positive_bits` packs the
    normalised input in the order of its memory (for `batch_norm_backward`); [0] without. Raises
    ValueError or TypeError that names the argument.
    """
    if plain([t for t in (input, running_mean, running_var, weight, bias) if t is not None]):
        return _batch_norm_(input, running_mean, running_var, weight, bias, eps, relu)
    return torch.ops.sparse_ft.batch_norm_(
        input, running_mean, running_var, weight, bias, eps, relu
    )
