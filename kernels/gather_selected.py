"""gather_selected: the selected entries of a matrix as compact values."""

from .move import move


def gather_selected_triton(matrix, kind, index, block_h, block_w, *, dtype=None, out=None):
    """values[k] = matrix[row(k), column(k)] in `dtype` (the matrix's by default).

    Padding of ragged blocks is zero.

    out: contiguous values to write to instead of new ones.
    """
    return move("gather", matrix, kind, index, block_h, block_w, out, dtype or matrix.dtype)
