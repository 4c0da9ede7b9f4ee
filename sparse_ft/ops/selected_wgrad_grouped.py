"""selected_wgrad_grouped: several weight gradients at their selected entries in one call."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._library import define, implement, wrote
from ._registry import launcher, reference
from .layout import Layout, as_layout
from .selected_wgrad import check_into, selected_wgrad, selected_wgrad_

ARGUMENTS = "Tensor[] grad_outputs, Tensor[] inputs, str[] kinds, Tensor[] indices, int[] blocks"
SCHEMA = f"selected_wgrad_grouped({ARGUMENTS}, *, ScalarType? dtype=None) -> Tensor[]"
SCHEMA_ = f"selected_wgrad_grouped_(Tensor(a!)[] values_grads, {ARGUMENTS}) -> ()"


class Problem(NamedTuple):
    """The arguments of one `selected_wgrad`."""

    grad_output: Tensor
    input: Tensor
    layout: Layout


def _problems(
    grad_outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    kinds: Sequence[str],
    indices: Sequence[Tensor],
    blocks: Sequence[int],
    **first: Sequence[Tensor],
) -> Iterator[Problem]:
    """The lists, problem by problem."""
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
    layouts = map(as_layout, kinds, indices, blocks[::2], blocks[1::2])
    return map(Problem, grad_outputs, inputs, layouts)


def _each(function: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    def grouped(*lists: Any, dtype: torch.dtype | None = None) -> list[Tensor]:
        return [
            function(problem.grad_output, problem.input, *problem.layout, dtype=dtype)
            for problem in _problems(*lists)
        ]

    return grouped


def _each_(function: Callable[..., None] | None) -> Callable[..., None]:
    def grouped_(values_grads: Sequence[Tensor], *lists: Any) -> None:
        problems = list(zip(values_grads, _problems(*lists, values_grads=values_grads)))
        for values_grad, problem in problems:  # before any is written
            check_into(values_grad, *problem)
        for values_grad, problem in problems:
            if function is None:
                continue
            function(values_grad, problem.grad_output, problem.input, *problem.layout)

    return grouped_


def _triton(*lists: Any, dtype: torch.dtype | None = None) -> list[Tensor]:
    _problems(*lists)
    return launcher("selected_wgrad.selected_wgrad_grouped_triton")(*lists, dtype=dtype)


def _triton_(values_grads: Sequence[Tensor], *lists: Any) -> None:
    _problems(*lists, values_grads=values_grads)
    launcher("selected_wgrad.selected_wgrad_grouped_triton_")(values_grads, *lists)
    wrote(*values_grads)


selected_wgrad_grouped_ref = _each(reference("selected_wgrad"))
selected_wgrad_grouped_ref_ = _each_(reference("selected_wgrad_"))

define(SCHEMA, fake=_each(selected_wgrad))
define(SCHEMA_, fake=_each_(None))
implement(
    "selected_wgrad_grouped",
    reference=selected_wgrad_grouped_ref,
    cpu=_each(selected_wgrad),
    triton=_triton,
)
implement(
    "selected_wgrad_grouped_",
    reference=selected_wgrad_grouped_ref_,
    cpu=_each_(selected_wgrad_),
    triton=_triton_,
)


def selected_wgrad_grouped(
    grad_outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    kinds: Sequence[str],
    indices: Sequence[Tensor],
    blocks: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
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
    for kind, index in zip(kinds, indices):
        as_layout(kind, index, 1, 1)
    return torch.ops.sparse_ft.selected_wgrad_grouped(
        grad_outputs, inputs, kinds, indices, blocks, dtype=dtype
    )


def selected_wgrad_grouped_(
    values_grads: Sequence[Tensor],
    grad_outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    kinds: Sequence[str],
    indices: Sequence[Tensor],
    blocks: Sequence[int],
) -> None:
    """`values_grads[i] += selected_wgrad_grouped(…)[i]` in place; nothing is written if any problem
    is refused.
    """
    for kind, index in zip(kinds, indices):
        as_layout(kind, index, 1, 1)
    torch.ops.sparse_ft.selected_wgrad_grouped_(
        values_grads, grad_outputs, inputs, kinds, indices, blocks
    )
