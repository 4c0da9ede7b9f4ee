"""gather_selected: weight -> values. Copies the selected entries of a matrix into the compact
layout.
"""

import torch
from torch import Tensor

from . import _native
from ._registry import launcher, op
from .layout import Layout, as_layout, check_matrix, inside


def _shapes(matrix: Tensor, layout: Layout, dtype: torch.dtype | None) -> Tensor:
    check_matrix(matrix)
    layout.check()
    return matrix.new_empty(layout.values_shape(matrix.shape), dtype=dtype or matrix.dtype)


def _cpu(matrix: Tensor, layout: Layout, values: Tensor) -> None:
    layout = layout.compiled()
    _native.require_served(matrix, values)
    _native.C.gather_selected(matrix, layout, values, 0, torch.get_num_threads())


def _cuda(matrix: Tensor, layout: Layout, values: Tensor) -> None:
    if layout.index.device != matrix.device:
        raise ValueError(
            f"index: expected a tensor on {matrix.device} as the matrix, got {layout.index.device}"
        )
    _native.require_device(matrix.device)
    layout = layout.compiled()
    _native.require_served(matrix, values)
    with torch.cuda.device(matrix.device):
        stream = torch.cuda.current_stream().cuda_stream
        _native.C.gather_selected_cuda(matrix, layout, values, stream)


def _triton(matrix: Tensor, layout: Layout, values: Tensor) -> None:
    launcher("gather_selected.gather_selected_triton")(
        matrix, *layout, dtype=values.dtype, out=values
    )


@op(
    "gather_selected(Tensor matrix, str kind, Tensor index, int block_h, int block_w, *,"
    " ScalarType? dtype=None) -> Tensor values",
    shapes=_shapes,
    cpu=_cpu,
    cuda=_cuda,
    triton=_triton,
)
def gather_selected(
    matrix: Tensor,
    kind: str | Layout,
    index: Tensor | None = None,
    block_h: int = 1,
    block_w: int = 1,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The selected entries of `matrix` as a compact tensor; for rows, `matrix[index]`.

    matrix: [rows, columns], floating point. kind, index, block_h, block_w: see
    `sparse_ft.ops.layout`; or a `Layout` in the place of all four.
    dtype: of the result, default that of the matrix. Returns the values, zero where a block is
    padding. Raises ValueError or TypeError that names the argument. An index out of range is the
    caller's to exclude (`Selection` does): the compiled backends do not look.
    """
    layout = as_layout(kind, index, block_h, block_w)
    row, column = layout.places(matrix.shape)
    dtype = dtype or matrix.dtype
    if not layout.structure.has_padding:
        return matrix[row, column].to(dtype)
    rows, columns = matrix.shape
    nearest_row = row.clamp(max=max(rows - 1, 0))
    nearest_column = column.clamp(max=max(columns - 1, 0))
    values = matrix[nearest_row, nearest_column]
    return values.masked_fill(~inside(row, column, matrix.shape), 0).to(dtype)
