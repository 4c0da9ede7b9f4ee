"""swap_selected_: values <-> weight. Exchanges the selected entries in place."""

import torch
from torch import Tensor

from ._registry import op
from .layout import Layout, as_layout
from .scatter_selected import check, places_inside, write


def _check_swap(matrix: Tensor, values: Tensor, layout: Layout) -> None:
    check(matrix, values, layout)
    if matrix.dtype != values.dtype:
        raise TypeError(
            f"values: a swap is exact only between equal dtypes, got {values.dtype} for a"
            f" {matrix.dtype} matrix"
        )


def _swap_native(matrix: Tensor, values: Tensor, layout: Layout) -> None:
    write(matrix, values, layout, "swap")


@op(
    "swap_selected_(Tensor(a!) matrix, Tensor(b!) values, str kind, Tensor index, int block_h, int"
    " block_w) -> ()",
    shapes=_check_swap,
    cpu=_swap_native,
    cuda=_swap_native,
    triton="scatter_selected.swap_selected_triton_",
)
def swap_selected_(
    matrix: Tensor,
    values: Tensor,
    kind: str | Layout,
    index: Tensor | None = None,
    block_h: int = 1,
    block_w: int = 1,
) -> None:
    """Exchange `values` with the selected entries of `matrix`, both in place; a second call
    restores every bit.

    Shapes as in `scatter_selected_`; both of one dtype, else TypeError.
    """
    row, column, keep = places_inside(matrix, as_layout(kind, index, block_h, block_w))
    old, new = matrix[row, column], values.reshape(-1)[keep]
    matrix[row, column] = new
    values[torch.unravel_index(keep, values.shape)] = old
