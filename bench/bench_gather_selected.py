"""gather_selected: weight -> values, against torch's own indexing and the bandwidth of a copy."""

import torch

from bench.cases import BLOCK, LARGE, SHAPES, Case, selection
from bench.suite import must
from sparse_ft import ops

OP = "gather_selected"
TESTS = ["tests/ops/test_gather_selected.py", "tests/native/test_gather_scatter.py"]
DENSITIES = {
    "tiny": (0.2,),
    "quick": (0.01, 0.1, 1.0),
    "full": (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0),
}
IN_MODELS = (0.01, 0.1)  # densities at which the layers of real models are measured


def cases(size):
    """A 32 M bf16 matrix over the densities; in full, the layers of real models too."""
    where = {"": (128, 192) if size == "tiny" else LARGE}
    if size == "full":
        where |= {
            f", {model} {layer}": shape
            for model, layers in SHAPES.items()
            for layer, shape in layers.items()
        }
    return [
        Case(
            f"{kind} {100 * density:g} %{name}",
            kind,
            density,
            "bfloat16",
            shape,
            seconds=0.02 if size == "tiny" else 0.4,
        )
        for name, shape in where.items()
        for kind in ("rows", "columns", "blocks", "entries")
        for density in DENSITIES[size]
        if not name or density in IN_MODELS
    ]


def bound(case, ceilings):
    """Seconds to read and write every selected entry once, and to read single positions, at copy
    bandwidth.
    """
    entries = case.density * case.shape[0] * case.shape[1]
    element = getattr(torch, case.dtype).itemsize
    return entries * (2 * element + (4 if case.kind == "entries" else 0)) / ceilings.copy


def indexed(matrix, kind, index):
    """(view, subscripts): `view[subscripts]` is torch's own way to the selected entries. index:
    int64.
    """
    if kind == "blocks":
        grid = matrix.view(
            matrix.size(0) // BLOCK, BLOCK, matrix.size(1) // BLOCK, BLOCK
        ).transpose(1, 2)
        return grid, (index[:, 0], index[:, 1])
    if kind == "entries":
        return matrix.view(-1), (index,)
    return matrix, (index,) if kind == "rows" else (slice(None), index)


def providers(case):
    chosen = selection(case.kind, case.shape, case.density)
    matrix, index = torch.randn(case.shape).to(getattr(torch, case.dtype)), chosen.index.long()
    view, subscripts = indexed(matrix, case.kind, index)
    found = {
        "ours": lambda: lambda: ops.gather_selected(matrix, *chosen.layout),
        "indexing": lambda: lambda: view[subscripts],
    }
    if case.kind != "blocks":
        dim = int(case.kind == "columns")
        found["index_select"] = lambda: lambda: view.index_select(dim, index)
    return found


def musts(found, op=OP):
    """Everything moved, which no cache holds: at memory speed."""
    whole = {c.kind: name for name, c in found.cases.items() if c.density == 1}
    text = "{}: share of same-run copy bandwidth, useful bytes"
    return [
        must(found, op, f"{kind}-100.of_copy", text.format(name), found.of_bound(name), 0.75)
        for kind, name in whole.items()
        if kind in ("rows", "blocks")
    ]
