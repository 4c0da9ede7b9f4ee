"""scatter_selected_ and swap_selected_, values -> weight.

Against torch's own indexed writes and the bandwidth of a copy.
"""

import functools

import torch

from bench import bench_gather_selected as gather
from bench.cases import selection
from sparse_ft import ops

OP = "scatter_selected"
TESTS = ["tests/ops/test_scatter_selected.py", "tests/native/test_gather_scatter.py"]
cases, bound = gather.cases, gather.bound  # the same bytes, the other way round
musts = functools.partial(gather.musts, op=OP)


def providers(case):
    chosen, dtype = selection(case.kind, case.shape, case.density), getattr(torch, case.dtype)
    matrix, index = torch.randn(case.shape).to(dtype), chosen.index.long()
    values = torch.randn(chosen.values_shape(case.shape)).to(dtype)
    view, subscripts = gather.indexed(matrix, case.kind, index)

    def indexed_write():
        view[subscripts] = values

    def swap_by_indexing():
        kept = view[subscripts]
        view[subscripts] = values
        values.copy_(kept)

    found = {
        "ours": lambda: lambda: ops.scatter_selected_(matrix, values, *chosen.layout),
        "indexing": lambda: indexed_write,
        "ours, swap": lambda: lambda: ops.swap_selected_(matrix, values, *chosen.layout),
        "indexing, swap": lambda: swap_by_indexing,
    }
    if case.kind != "blocks":
        dim = int(case.kind == "columns")
        found["index_copy_"] = lambda: lambda: view.index_copy_(dim, index, values)
    return found
