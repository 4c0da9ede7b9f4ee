"""gather_selected: weight -> values. Copies the selected entries of a matrix into the compact
layout.
"""

import torch

from . import _native
from ._library import HAS_TRITON, define, implement
from .layout import check_layout, check_matrix, coordinates, explain_layout, inside, values_shape

SCHEMA = (
    "gather_selected(Tensor matrix, str kind, Tensor index, int block_h, int block_w, *,"
    " ScalarType? dtype=None) -> Tensor"
)


def gather_selected_ref(matrix, kind, index, block_h, block_w, *, dtype=None):
    check_matrix(matrix)
    check_layout(kind, index, block_h, block_w)
    row, column = coordinates(kind, index, block_h, block_w, matrix.shape)
    if kind != "blocks":
        return matrix[row, column].to(dtype or matrix.dtype)
    padding = ~inside(row, column, matrix.shape)
    last_row, last_column = (max(size - 1, 0) for size in matrix.shape)
    values = matrix[row.clamp(max=last_row), column.clamp(max=last_column)]
    return values.masked_fill(padding, 0).to(dtype or matrix.dtype)


def _fake(matrix, kind, index, block_h, block_w, *, dtype=None):
    check_matrix(matrix)
    check_layout(kind, index, block_h, block_w)
    return matrix.new_empty(
        values_shape(kind, index, block_h, block_w, matrix.shape), dtype=dtype or matrix.dtype
    )


def gather_selected_cpu(matrix, kind, index, block_h, block_w, *, dtype=None):
    values = _fake(matrix, kind, index, block_h, block_w, dtype=dtype)
    index = index.contiguous()
    if not _native.served(matrix, values):
        return gather_selected_ref(matrix, kind, index, block_h, block_w, dtype=dtype)
    where = (kind, index, block_h, block_w)
    _native.C.gather_selected(matrix, where, values, 0, torch.get_num_threads())
    return values


def gather_selected_triton(matrix, kind, index, block_h, block_w, *, dtype=None):
    from sparse_ft.kernels import gather_selected as kernels

    return kernels.gather_selected_triton(matrix, kind, index, block_h, block_w, dtype=dtype)


def gather_selected_cuda(matrix, kind, index, block_h, block_w, *, dtype=None):
    values = _fake(matrix, kind, index, block_h, block_w, dtype=dtype)
    index = index.contiguous()
    if index.device != matrix.device:
        raise ValueError(
            f"index: expected a tensor on {matrix.device} as the matrix, got {index.device}"
        )
    if not _native.served(matrix, values):  # strided
        otherwise = gather_selected_triton if HAS_TRITON else gather_selected_ref
        return otherwise(matrix, kind, index, block_h, block_w, dtype=dtype)
    where = (kind, index, block_h, block_w)
    with torch.cuda.device(matrix.device):
        stream = torch.cuda.current_stream().cuda_stream
        _native.C.gather_selected_cuda(matrix, where, values, stream)
    return values


define(SCHEMA, fake=_fake)
implement(
    "gather_selected",
    reference=gather_selected_ref,
    cpu=gather_selected_cpu,
    cuda=gather_selected_cuda,
    triton=gather_selected_triton,
)


def gather_selected(matrix, kind, index=None, block_h=1, block_w=1, *, dtype=None):
    """The selected entries of `matrix` as a compact tensor; for rows, `matrix[index]`.

    matrix: [rows, columns], floating point. kind, index, block_h, block_w: see
    `sparse_ft.ops.layout`.
    dtype: of the result, default that of the matrix. Returns the values, zero where a block is
    padding. Raises ValueError or TypeError that names the argument. An index out of range is the
    caller's to exclude (`Selection` does): the compiled backends do not look.
    """
    if type(kind) is not str or index is None:
        explain_layout(kind, index)
    return torch.ops.sparse_ft.gather_selected(matrix, kind, index, block_h, block_w, dtype=dtype)
