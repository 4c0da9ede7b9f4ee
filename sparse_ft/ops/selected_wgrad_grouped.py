"""selected_wgrad_grouped: several weight gradients at their selected entries in one call."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._common import check_count
from ._library import wrote
from ._registry import Whole, launcher, op, reference
from .layout import Layout, as_layout
from .selected_wgrad import check_into, selected_wgrad, selected_wgrad_, shapes

Tensors = Sequence[Tensor]
ARGUMENTS = "Tensor[] grad_outputs, Tensor[] inputs, str[] kinds, Tensor[] indices, int[] blocks"
TRITON = "selected_wgrad.selected_wgrad_grouped_triton"


class Problem(NamedTuple):
    """The arguments of one `selected_wgrad`."""

    grad_output: Tensor
    input: Tensor
    layout: Layout

    def flat(self) -> tuple:
        """As `selected_wgrad` takes them."""
        return self.grad_output, self.input, *self.layout


class Group(NamedTuple):
    """Problems, and the dtype that all results have, or what they are added to."""

    problems: list[Problem]
    dtype: torch.dtype | None = None
    values_grads: Tensors = ()

    def of_triton(self) -> list[tuple]:
        """The problems as the launchers take them. Raises `Unserved` for a structure that has no
        Triton part.
        """
        for problem in self.problems:
            problem.layout.of_triton()
        return [problem.flat() for problem in self.problems]


def _group(
    grad_outputs: Tensors,
    inputs: Tensors,
    kinds: Sequence[str],
    indices: Tensors,
    blocks: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
) -> Group:
    count = len(grad_outputs)
    for name, items in (("inputs", inputs), ("kinds", kinds), ("indices", indices)):
        check_count(name, items, count, "grad_outputs")
    if len(blocks) != 2 * count:
        raise ValueError(
            f"blocks: expected block_h and block_w of {count} problems, got {len(blocks)} numbers"
        )
    layouts = map(as_layout, kinds, indices, blocks[::2], blocks[1::2])
    return Group(list(map(Problem, grad_outputs, inputs, layouts)), dtype)


def _group_into(
    values_grads: Tensors,
    grad_outputs: Tensors,
    inputs: Tensors,
    kinds: Sequence[str],
    indices: Tensors,
    blocks: Sequence[int],
) -> Group:
    check_count("values_grads", values_grads, len(grad_outputs), "grad_outputs")
    group = _group(grad_outputs, inputs, kinds, indices, blocks)
    return group._replace(values_grads=values_grads)


def _check_layouts(kinds: Sequence[str], indices: Tensors) -> None:
    for kind, index in zip(kinds, indices):
        as_layout(kind, index, 1, 1)


def _shapes(group: Group) -> list[Tensor]:
    return [shapes(*problem, group.dtype) for problem in group.problems]


def _check_into(group: Group) -> None:
    for values_grad, problem in zip(group.values_grads, group.problems):
        check_into(values_grad, *problem)


def _one_by_one(group: Group) -> list[Tensor]:
    return [selected_wgrad(*problem.flat(), dtype=group.dtype) for problem in group.problems]


def _one_by_one_(group: Group) -> None:
    _check_into(group)  # of all, before any is written
    for values_grad, problem in zip(group.values_grads, group.problems):
        selected_wgrad_(values_grad, *problem.flat())


def _triton(group: Group) -> list[Tensor]:
    return launcher(TRITON)(group.of_triton(), dtype=group.dtype)


def _triton_(group: Group) -> None:
    launcher(f"{TRITON}_")(group.values_grads, group.of_triton())
    wrote(*group.values_grads)


@op(
    f"selected_wgrad_grouped({ARGUMENTS}, *, ScalarType? dtype=None) -> Tensor[] values",
    takes=_group,
    shapes=_shapes,
    cpu=Whole(_one_by_one),
    triton=Whole(_triton),
    before=_check_layouts,
)
def selected_wgrad_grouped(group: Group) -> list[Tensor]:
    """`[selected_wgrad(...) for each problem]`, the same bits, for a caller that holds several
    gradients at one time.

    grad_outputs: [T, rows] each. inputs: [T, columns] each; T, shapes, kinds and dtypes may differ
    from problem to problem. kinds, indices: one a problem. blocks: block_h, block_w, block_h,
    block_w, …. dtype: of the results, default that of each accumulator. On a GPU, blocks of 16-bit
    operands share launches, 16 problems each, where they have one tile; every other problem is a
    call of its own, as all are on the CPU. Raises ValueError or TypeError that names the argument.

    Experts that hold their weights in one parameter (`sparse_ft.experts`) have the gradients of a
    grouped product at one time.
    """
    one = reference("selected_wgrad")
    return [one(*problem.flat(), dtype=group.dtype) for problem in group.problems]


@op(
    f"selected_wgrad_grouped_(Tensor(a!)[] values_grads, {ARGUMENTS}) -> ()",
    takes=_group_into,
    shapes=_check_into,
    cpu=Whole(_one_by_one_),
    triton=Whole(_triton_),
    before=_check_layouts,
)
def selected_wgrad_grouped_(group: Group) -> None:
    """`values_grads[i] += selected_wgrad_grouped(…)[i]` in place; nothing is written if any problem
    is refused.
    """
    one = reference("selected_wgrad_")
    for values_grad, problem in zip(group.values_grads, group.problems):
        one(values_grad, *problem.flat())
