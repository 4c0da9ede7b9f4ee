"""The arguments of selected_wgrad_grouped, which the dispatcher takes as lists, as a `Problem`
each; what is wrong with them is named.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._common import check_count
from .layout import Layout, as_layout

Tensors = Sequence[Tensor]
ARGUMENTS = "Tensor[] grad_outputs, Tensor[] inputs, str[] kinds, Tensor[] indices, int[] blocks"


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


def group_of(
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


def group_into(
    values_grads: Tensors,
    grad_outputs: Tensors,
    inputs: Tensors,
    kinds: Sequence[str],
    indices: Tensors,
    blocks: Sequence[int],
) -> Group:
    check_count("values_grads", values_grads, len(grad_outputs), "grad_outputs")
    group = group_of(grad_outputs, inputs, kinds, indices, blocks)
    return group._replace(values_grads=values_grads)


def check_layouts(kinds: Sequence[str], indices: Tensors) -> None:
    for kind, index in zip(kinds, indices):
        as_layout(kind, index, 1, 1)
