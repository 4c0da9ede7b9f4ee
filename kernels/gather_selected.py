"""gather_selected: the selected entries of a matrix as compact values."""

import torch

from .move import move


def gather_selected_triton(
    matrix: torch.Tensor,
    kind: str,
    index: torch.Tensor,
    block_h: int,
    block_w: int,
    *,
    dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """values[k] = matrix[row(k), column(k)] in `dtype` (the matrix's by default).

    Padding of ragged blocks is zero.

    out: contiguous values to write to instead of new ones.
    """
    return move("gather", matrix, kind, index, block_h, block_w, out, dtype or matrix.dtype)
