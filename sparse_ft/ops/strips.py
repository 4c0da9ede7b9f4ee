"""Strips: the dense product, so many rows at a time that few of its elements are held."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Elements of the dense gradient that strips hold at a time: half as many cost up to 6 % on two
# threads.
STRIP = 1 << 21


def strips(index: Tensor, rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """The dense gradient [rows, columns] in strips, each dropped once its entries are taken: sorted
    positions make a strip a slice.

    index: [nnz], flat positions. Yields (rows, slice of the values).
    """
    if not index.numel():
        return
    height = max(1, min(STRIP // columns, -(-rows // 2)))
    # The last position in front of each strip, in the dtype of the index: searchsorted would
    # convert all of that instead.
    before = torch.arange(0, rows + height, height, device=index.device) * columns - 1
    before = before.clamp_(max=torch.iinfo(index.dtype).max).to(index.dtype)
    edges = torch.searchsorted(index, before, right=True).tolist()
    if edges[0] != 0 or edges[-1] != index.size(0):
        raise IndexError(
            f"index: it names entries that a matrix of shape {(rows, columns)} does not have; was"
            " it edited after the selection was made? Make a new selection instead"
        )
    for number, (first, end) in enumerate(zip(edges, edges[1:])):
        start = number * height
        if first < end:
            yield slice(start, min(start + height, rows)), slice(first, end)
