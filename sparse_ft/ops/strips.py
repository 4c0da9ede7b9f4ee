"""Strips: the dense product, so many rows at a time that few of its elements are held."""

from collections.abc import Iterator

import torch
from torch import Tensor

from . import _native
from ._common import accumulator
from .layout import Layout

# Elements of the dense gradient that strips hold at a time: half as many cost up to 6 % on two
# threads.
STRIP = 1 << 21
# Strips of one matrix, at least. What is added to often holds several matrices, as the experts of a
# mixture: half of one would be an eighth of four.
FEWEST = 2
FEWEST_ADDED = 4


def strips(
    index: Tensor, rows: int, columns: int, fewest: int = FEWEST
) -> Iterator[tuple[slice, slice]]:
    """The dense gradient [rows, columns] in strips, each dropped once its entries are taken: sorted
    positions make a strip a slice.

    index: [nnz], flat positions. fewest: how many strips there are at least, where the rows are as
    many. Yields (rows, slice of the values).
    """
    if not index.numel():
        return
    height = max(1, min(STRIP // columns, -(-rows // fewest)))
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


def write_by_strips(
    grad_output: Tensor, input: Tensor, layout: Layout, values: Tensor, accumulate: bool
) -> None:
    """The weight gradient of single entries by the compiled part: the same bits for any number of
    threads.
    """
    index, columns, threads = layout.index, input.size(1), torch.get_num_threads()
    everything = Layout("all", index[:0])
    fewest = FEWEST_ADDED if accumulate else FEWEST
    for rows, some in strips(index, grad_output.size(1), columns, fewest):
        strip = input.new_empty(rows.stop - rows.start, columns, dtype=accumulator(input.dtype))
        part = grad_output[:, rows]
        _native.C.selected_wgrad(part, input, everything, strip, False, threads)
        taken = torch.empty_like(values[some]) if accumulate else values[some]
        first = rows.start * columns  # the index counts from the first row of the matrix
        _native.C.gather_selected(strip, Layout(layout.kind, index[some]), taken, first, threads)
        if accumulate:
            values[some] += taken
        del strip, taken  # before the next are made
