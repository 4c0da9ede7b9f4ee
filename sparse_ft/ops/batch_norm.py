"""batch_norm_: BatchNorm by its running statistics, in place, with the ReLU that follows it and one
bit an element.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _native
from ._channels import check, in_order
from ._common import accumulator
from ._registry import op, reference
from ._rows import contiguous
from .positive_bits import num_bytes


def _shapes(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    relu: bool,
) -> Tensor:
    check(
        "input", input, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias
    )
    _, ordered = in_order(input)
    if not ordered.is_contiguous():
        raise ValueError(
            f"input: expected contiguous or channels last, got shape {tuple(input.shape)},"
            f" {input.stride()}"
        )
    return input.new_empty(num_bytes(input) if relu else 0, dtype=torch.uint8)


def _cpu(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    relu: bool,
    bits: Tensor,
) -> None:
    mean, variance = running_mean.contiguous(), running_var.contiguous()
    weight, bias, written = contiguous(weight), contiguous(bias), bits if relu else None
    threads = torch.get_num_threads()
    _native.C.batch_norm_(input, mean, variance, weight, bias, eps, written, threads)


@op(
    "batch_norm_(Tensor(a!) input, Tensor running_mean, Tensor running_var, Tensor? weight, Tensor?"
    " bias, float eps, bool relu) -> Tensor bits",
    shapes=_shapes,
    cpu=_cpu,
    triton="batch_norm.batch_norm_triton_",
)
def batch_norm_(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    relu: bool = False,
) -> Tensor:
    """`input.copy_(F.batch_norm(input, running_mean, running_var, weight, bias, False, eps=eps))`,
    with relu `.relu()` of it.

    input: [N, C, ...], floating point, contiguous or channels last. running_mean, running_var,
    weight, bias: [C]; the last two perhaps None. Computed in fp32 (fp64 for fp64) and rounded once
    to the dtype of input. Returns, with relu, uint8 [ceil(numel / 8)], as `positive_bits` packs the
    normalised input in the order of its memory (for `batch_norm_backward`); [0] without. Raises
    ValueError or TypeError that names the argument.
    """
    wide = accumulator(input.dtype)
    output = F.batch_norm(
        input.to(wide),
        running_mean.to(wide),
        running_var.to(wide),
        None if weight is None else weight.to(wide),
        None if bias is None else bias.to(wide),
        eps=eps,
    ).to(input.dtype)
    if not relu:
        input.copy_(output)
        return input.new_empty(0, dtype=torch.uint8)
    _, ordered = in_order(output)
    input.copy_(output.relu())
    return reference("positive_bits")(ordered)
