"""scatter_selected_: compact values into the selected entries of a matrix: copied, added or
swapped.
"""

import torch

from .move import move


def scatter_selected_triton_(
    matrix: torch.Tensor,
    values: torch.Tensor,
    kind: str,
    index: torch.Tensor,
    block_h: int,
    block_w: int,
    *,
    accumulate: bool = False,
) -> None:
    """matrix[row(k), column(k)] = values[k], or += with `accumulate`.

    Every other entry keeps its bits.
    """
    move(
        "add" if accumulate else "copy", matrix, kind, index, block_h, block_w, values.contiguous()
    )


def swap_selected_triton_(
    matrix: torch.Tensor,
    values: torch.Tensor,
    kind: str,
    index: torch.Tensor,
    block_h: int,
    block_w: int,
) -> None:
    """matrix[row(k), column(k)] and values[k] change places.

    Twice is the identity, so both share a dtype.
    """
    if values.dtype != matrix.dtype:
        raise TypeError(
            f"values must have the matrix's dtype {matrix.dtype} to be swapped, got {values.dtype}"
        )
    packed = move("swap", matrix, kind, index, block_h, block_w, values.contiguous())
    if packed is not values:
        values.copy_(packed)
