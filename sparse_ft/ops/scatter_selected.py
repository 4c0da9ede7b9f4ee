"""scatter_selected_: values -> weight. Copies or adds to the selected entries in place."""

import torch
from torch import Tensor

from . import _native
from ._registry import op
from .layout import Layout, as_layout, check_matrix, inside


def check(matrix: Tensor, values: Tensor, layout: Layout) -> None:
    check_matrix(matrix)
    layout.check()
    layout.check_values(values, matrix.shape)


def write(matrix: Tensor, values: Tensor, layout: Layout, mode: str) -> None:
    """Hand the tensors to the compiled kernel of their device. mode: "copy", "add" or "swap"."""
    layout = layout.compiled()
    _native.require_served(matrix, values)
    if not matrix.is_cuda:
        _native.C.scatter_selected_(matrix, layout, values, mode, torch.get_num_threads())
        return
    _native.require_device(matrix.device)
    with torch.cuda.device(matrix.device):
        stream = torch.cuda.current_stream().cuda_stream
        _native.C.scatter_selected_cuda_(matrix, layout, values, mode, stream)


def _scatter_native(matrix: Tensor, values: Tensor, layout: Layout, accumulate: bool) -> None:
    write(matrix, values.contiguous(), layout, "add" if accumulate else "copy")


def places_inside(matrix: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """(row, column, flat position in values) of every value that is not padding."""
    row, column = torch.broadcast_tensors(*layout.places(matrix.shape))
    keep = inside(row, column, matrix.shape).reshape(-1).nonzero().squeeze(1)
    return row.reshape(-1)[keep], column.reshape(-1)[keep], keep


@op(
    "scatter_selected_(Tensor(a!) matrix, Tensor values, str kind, Tensor index, int block_h, int"
    " block_w, *, bool accumulate=False) -> ()",
    shapes=check,
    cpu=_scatter_native,
    cuda=_scatter_native,
    triton="scatter_selected.scatter_selected_triton_",
)
def scatter_selected_(
    matrix: Tensor,
    values: Tensor,
    kind: str | Layout,
    index: Tensor | None = None,
    block_h: int = 1,
    block_w: int = 1,
    *,
    accumulate: bool = False,
) -> None:
    """Write `values` to the selected entries of `matrix`, in place; for rows, `matrix[index] =
    values`.

    matrix: [rows, columns], any strides. values: shaped by the layout (`sparse_ft.ops.layout`), any
    floating dtype, rounded to nearest even. accumulate: add instead, in fp32 (fp64 for an fp64
    matrix), rounded once. Padding of blocks is ignored. Raises ValueError or TypeError that names
    the argument, before anything is written.
    """
    row, column, keep = places_inside(matrix, as_layout(kind, index, block_h, block_w))
    new = values.reshape(-1)[keep]
    if accumulate:
        new = matrix[row, column].to(torch.promote_types(torch.float32, matrix.dtype)) + new
    matrix[row, column] = new.to(matrix.dtype)
