"""selected_wgrad_grouped: several weight gradients at their selected entries in one call."""

import torch

from ._library import define, implement, wrote
from .layout import explain_layout
from .selected_wgrad import _fake as _fake_one
from .selected_wgrad import _fake_ as _fake_one_
from .selected_wgrad import (
    selected_wgrad_cpu,
    selected_wgrad_cpu_,
    selected_wgrad_ref,
    selected_wgrad_ref_,
)

ARGUMENTS = "Tensor[] grad_outputs, Tensor[] inputs, str[] kinds, Tensor[] indices, int[] blocks"
SCHEMA = f"selected_wgrad_grouped({ARGUMENTS}, *, ScalarType? dtype=None) -> Tensor[]"
SCHEMA_ = f"selected_wgrad_grouped_(Tensor(a!)[] values_grads, {ARGUMENTS}) -> ()"


def _problems(grad_outputs, inputs, kinds, indices, blocks, **first):
    """The arguments of `selected_wgrad` or `selected_wgrad_`, problem by problem."""
    lists = {**first, "inputs": inputs, "kinds": kinds, "indices": indices}
    for name, items in lists.items():
        if len(items) != len(grad_outputs):
            raise ValueError(
                f"{name}: expected {len(grad_outputs)} items, one a tensor of grad_outputs, got"
                f" {len(items)}"
            )
    if len(blocks) != 2 * len(grad_outputs):
        raise ValueError(
            f"blocks: expected block_h and block_w of {len(grad_outputs)} problems, got"
            f" {len(blocks)} numbers"
        )
    return list(
        zip(*first.values(), grad_outputs, inputs, kinds, indices, blocks[::2], blocks[1::2])
    )


def _each(function):
    def grouped(*lists, dtype=None):
        return [function(*problem, dtype=dtype) for problem in _problems(*lists)]

    return grouped


def _each_(function):
    def grouped_(values_grads, *lists):
        problems = _problems(*lists, values_grads=values_grads)
        for problem in problems:  # before any is written
            _fake_one_(*problem)
        for problem in problems:
            function(*problem)

    return grouped_


selected_wgrad_grouped_ref, selected_wgrad_grouped_ref_ = (
    _each(selected_wgrad_ref),
    _each_(selected_wgrad_ref_),
)
selected_wgrad_grouped_cpu, selected_wgrad_grouped_cpu_ = (
    _each(selected_wgrad_cpu),
    _each_(selected_wgrad_cpu_),
)
_fake, _fake_ = _each(_fake_one), _each_(_fake_one_)


def selected_wgrad_grouped_triton(*lists, dtype=None):
    from sparse_ft.kernels import selected_wgrad as kernels

    _problems(*lists)
    return kernels.selected_wgrad_grouped_triton(*lists, dtype=dtype)


def selected_wgrad_grouped_triton_(values_grads, *lists):
    from sparse_ft.kernels import selected_wgrad as kernels

    _problems(*lists, values_grads=values_grads)
    kernels.selected_wgrad_grouped_triton_(values_grads, *lists)
    wrote(*values_grads)


define(SCHEMA, fake=_fake)
define(SCHEMA_, fake=_fake_)
implement(
    "selected_wgrad_grouped",
    reference=selected_wgrad_grouped_ref,
    cpu=selected_wgrad_grouped_cpu,
    triton=selected_wgrad_grouped_triton,
)
implement(
    "selected_wgrad_grouped_",
    reference=selected_wgrad_grouped_ref_,
    cpu=selected_wgrad_grouped_cpu_,
    triton=selected_wgrad_grouped_triton_,
)


def selected_wgrad_grouped(grad_outputs, inputs, kinds, indices, blocks, *, dtype=None):
    """`[selected_wgrad(...) for each problem]`, the same bits, for a caller that holds several
    gradients at one time.

    grad_outputs: [T, rows] each. inputs: [T, columns] each; T, shapes, kinds and dtypes may differ
    from problem to problem. kinds, indices: one a problem. blocks: block_h, block_w, block_h,
    block_w, …. dtype: of the results, default that of each accumulator. On a GPU, blocks of 16-bit
    operands share launches, 16 problems each, where they have one tile; every other problem is a
    call of its own, as all are on the CPU. Raises ValueError or TypeError that names the argument.

    Nothing in the library calls it: autograd brings the gradients of layers one after another, and
    experts whose weights are one parameter train through their dense gradient.
    """
    for kind in kinds:
        if type(kind) is not str:
            explain_layout(kind)
    return torch.ops.sparse_ft.selected_wgrad_grouped(
        grad_outputs, inputs, kinds, indices, blocks, dtype=dtype
    )


def selected_wgrad_grouped_(values_grads, grad_outputs, inputs, kinds, indices, blocks):
    """`values_grads[i] += selected_wgrad_grouped(…)[i]` in place; nothing is written if any problem
    is refused.
    """
    for kind in kinds:
        if type(kind) is not str:
            explain_layout(kind)
    torch.ops.sparse_ft.selected_wgrad_grouped_(
        values_grads, grad_outputs, inputs, kinds, indices, blocks
    )
