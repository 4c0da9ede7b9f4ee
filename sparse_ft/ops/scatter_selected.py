"""scatter_selected_ and swap_selected_: values -> weight. Copy, add, or exchange the selected
entries in place.
"""

import torch

from . import _native
from ._library import define, implement, wrote
from .layout import check_layout, check_matrix, check_values, coordinates, explain_layout, inside

SCATTER = (
    "scatter_selected_(Tensor(a!) matrix, Tensor values, str kind, Tensor index, int block_h, int"
    " block_w, *, bool accumulate=False) -> ()"
)
SWAP = (
    "swap_selected_(Tensor(a!) matrix, Tensor(b!) values, str kind, Tensor index, int block_h, int"
    " block_w) -> ()"
)


def _places(matrix, kind, index, block_h, block_w):
    """(row, column, flat position in values) of every value that is not padding."""
    row, column = torch.broadcast_tensors(*coordinates(kind, index, block_h, block_w, matrix.shape))
    keep = inside(row, column, matrix.shape).reshape(-1).nonzero().squeeze(1)
    return row.reshape(-1)[keep], column.reshape(-1)[keep], keep


def scatter_selected_ref_(matrix, values, kind, index, block_h, block_w, *, accumulate=False):
    _check(matrix, values, kind, index, block_h, block_w)
    row, column, keep = _places(matrix, kind, index, block_h, block_w)
    new = values.reshape(-1)[keep]
    if accumulate:
        new = matrix[row, column].to(torch.promote_types(torch.float32, matrix.dtype)) + new
    matrix[row, column] = new.to(matrix.dtype)


def swap_selected_ref_(matrix, values, kind, index, block_h, block_w):
    _check_swap(matrix, values, kind, index, block_h, block_w)
    row, column, keep = _places(matrix, kind, index, block_h, block_w)
    old, new = matrix[row, column], values.reshape(-1)[keep]
    matrix[row, column] = new
    inner = torch.unravel_index(keep, values.shape)
    values[inner] = old


def _check(matrix, values, kind, index, block_h, block_w, *, accumulate=False):
    check_matrix(matrix)
    check_layout(kind, index, block_h, block_w)
    check_values(values, kind, index, block_h, block_w, matrix.shape)


def _check_swap(matrix, values, kind, index, block_h, block_w):
    _check(matrix, values, kind, index, block_h, block_w)
    if matrix.dtype != values.dtype:
        raise TypeError(
            f"values: a swap is exact only between equal dtypes, got {values.dtype} for a"
            f" {matrix.dtype} matrix"
        )


def _write(matrix, values, kind, index, block_h, block_w, mode):
    """Hand the tensors to the compiled kernel of their device. mode: "copy", "add" or "swap"."""
    where = (kind, index, block_h, block_w)
    if matrix.is_cuda:
        with torch.cuda.device(matrix.device):
            stream = torch.cuda.current_stream().cuda_stream
            _native.C.scatter_selected_cuda_(matrix, where, values, mode, stream)
    else:
        _native.C.scatter_selected_(matrix, where, values, mode, torch.get_num_threads())


def scatter_selected_native_(matrix, values, kind, index, block_h, block_w, *, accumulate=False):
    _check(matrix, values, kind, index, block_h, block_w)
    index, values = index.contiguous(), values.contiguous()
    if not _native.served(matrix, values):
        return scatter_selected_ref_(
            matrix, values, kind, index, block_h, block_w, accumulate=accumulate
        )
    _write(matrix, values, kind, index, block_h, block_w, "add" if accumulate else "copy")
    wrote(matrix)


def swap_selected_native_(matrix, values, kind, index, block_h, block_w):
    _check_swap(matrix, values, kind, index, block_h, block_w)
    index = index.contiguous()
    if not _native.served(matrix, values):
        return swap_selected_ref_(matrix, values, kind, index, block_h, block_w)
    _write(matrix, values, kind, index, block_h, block_w, "swap")
    wrote(matrix, values)


def scatter_selected_triton_(matrix, values, kind, index, block_h, block_w, *, accumulate=False):
    from sparse_ft.kernels import scatter_selected as kernels

    _check(matrix, values, kind, index, block_h, block_w)
    kernels.scatter_selected_triton_(
        matrix, values, kind, index, block_h, block_w, accumulate=accumulate
    )
    wrote(matrix)


def swap_selected_triton_(matrix, values, kind, index, block_h, block_w):
    from sparse_ft.kernels import scatter_selected as kernels

    _check_swap(matrix, values, kind, index, block_h, block_w)
    kernels.swap_selected_triton_(matrix, values, kind, index, block_h, block_w)
    wrote(matrix, values)


define(SCATTER, fake=_check)
define(SWAP, fake=_check_swap)
implement(
    "scatter_selected_",
    reference=scatter_selected_ref_,
    cpu=scatter_selected_native_,
    cuda=scatter_selected_native_,
    triton=scatter_selected_triton_,
)
implement(
    "swap_selected_",
    reference=swap_selected_ref_,
    cpu=swap_selected_native_,
    cuda=swap_selected_native_,
    triton=swap_selected_triton_,
)


def scatter_selected_(matrix, values, kind, index=None, block_h=1, block_w=1, *, accumulate=False):
    """Write `values` to the selected entries of `matrix`, in place; for rows, `matrix[index] =
    values`.

    matrix: [rows, columns], any strides. values: shaped by the layout (`sparse_ft.ops.layout`), any
    floating dtype, rounded to nearest even. accumulate: add instead, in fp32 (fp64 for an fp64
    matrix), rounded once. Padding of blocks is ignored. Raises ValueError or TypeError that names
    the argument, before anything is written.
    """
    if type(kind) is not str or index is None:
        explain_layout(kind, index)
    torch.ops.sparse_ft.scatter_selected_(
        matrix, values, kind, index, block_h, block_w, accumulate=accumulate
    )


def swap_selected_(matrix, values, kind, index=None, block_h=1, block_w=1):
    """Exchange `values` with the selected entries of `matrix`, both in place; a second call
    restores every bit.

    Shapes as in `scatter_selected_`; both of one dtype, else TypeError.
    """
    if type(kind) is not str or index is None:
        explain_layout(kind, index)
    torch.ops.sparse_ft.swap_selected_(matrix, values, kind, index, block_h, block_w)
