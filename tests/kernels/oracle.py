"""Layouts over small odd shapes, where their values sit by plain PyTorch, and the bound on a
kernel's error.

Imported by the interpreted_*.py files only, which test_interpreted.py runs with this folder on the
path.
"""

import os

import torch

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def _case(rows, columns, kind, index, block_h=1, block_w=1, dtype=torch.int64):
    index = torch.tensor(index, dtype=dtype, device=DEVICE)
    return (
        rows,
        columns,
        kind,
        index.reshape(-1, 2) if kind == "blocks" else index,
        block_h,
        block_w,
    )


CASES = {
    "rows": _case(7, 13, "rows", [0, 3, 6]),
    "rows-wide": _case(3, 1030, "rows", [1, 2], dtype=torch.int32),
    "rows-one-row": _case(1, 5, "rows", [0]),
    "rows-empty": _case(4, 5, "rows", []),
    "columns": _case(19, 13, "columns", [0, 5, 12], dtype=torch.int32),
    "columns-one-column": _case(9, 1, "columns", [0]),
    "columns-all": _case(5, 4, "columns", [0, 1, 2, 3]),
    "columns-empty": _case(4, 5, "columns", []),
    "blocks": _case(32, 48, "blocks", [[0, 2], [1, 0], [1, 1]], 16, 16),
    "blocks-ragged": _case(
        11, 13, "blocks", [[0, 0], [1, 3], [2, 1], [2, 3]], 4, 4, dtype=torch.int32
    ),
    "blocks-odd": _case(10, 9, "blocks", [[0, 1], [3, 0], [3, 1]], 3, 5),
    "blocks-one-entry": _case(3, 3, "blocks", [[0, 0], [2, 1]], 1, 1),
    "blocks-beyond": _case(5, 6, "blocks", [[0, 0]], 8, 8),
    "blocks-tiled": _case(75, 140, "blocks", [[0, 0], [1, 0]], 70, 133),
    "blocks-empty": _case(4, 5, "blocks", [], 2, 2),
    "entries": _case(11, 13, "entries", [0, 12, 13, 80, 142]),
    "entries-many": _case(40, 50, "entries", list(range(0, 2000, 7)) + [1999], dtype=torch.int32),
    "entries-empty": _case(4, 5, "entries", []),
}


def places(rows, columns, kind, index, block_h, block_w):
    """Row, column and whether inside the matrix, each of the values' shape."""
    index, m, n = (
        index.long(),
        torch.arange(rows, device=DEVICE),
        torch.arange(columns, device=DEVICE),
    )
    if kind == "rows":
        row, column = index[:, None], n
    elif kind == "columns":
        row, column = m[:, None], index
    elif kind == "blocks":
        row = index[:, 0, None, None] * block_h + torch.arange(block_h, device=DEVICE)[:, None]
        column = index[:, 1, None, None] * block_w + torch.arange(block_w, device=DEVICE)
    else:
        row, column = index // columns, index % columns
    row, column = torch.broadcast_tensors(row, column)
    return row, column, (row < rows) & (column < columns)


def gather(matrix, case):
    row, column, inside = places(*case)
    values = matrix[row.clamp(max=matrix.size(0) - 1), column.clamp(max=matrix.size(1) - 1)]
    return torch.where(inside, values, torch.zeros_like(values))


def selected_mask(case):
    mask = torch.zeros(case[0], case[1], dtype=torch.bool, device=DEVICE)
    row, column, inside = places(*case)
    mask[row[inside], column[inside]] = True
    return mask


def bits(tensor):
    return tensor.contiguous().view(
        {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    )


def random(*shape, dtype=torch.float32):
    return torch.randn(shape, device=DEVICE).to(dtype)


def transposed(matrix):
    """The same matrix, stored column by column."""
    return matrix.t().contiguous().t()


def split_tokens(monkeypatch, least):
    """Blocks sum their tokens in parts of `least` or a little more, however few programs fill."""
    from sparse_ft.kernels import selected_wgrad_splits

    monkeypatch.setattr(
        selected_wgrad_splits, "splits_of", lambda tokens, tiles: max(1, tokens // least)
    )


def within_twice(actual, plain, exact):
    """The kernel's largest error is at most twice that of plain PyTorch in the same dtype.

    `exact` is in float64.

    The last rounding alone may cost half a unit in the last place, where plain PyTorch happens to
    be exact.
    """
    assert (
        actual.shape == plain.shape == exact.shape
        and actual.dtype == plain.dtype
        and exact.dtype == torch.float64
    )
    if exact.numel():
        error, allowed = ((x.double() - exact).abs().max().item() for x in (actual, plain))
        unit = torch.finfo(actual.dtype).eps * exact.abs().max().item()
        assert error <= 2 * max(allowed, unit / 2), (
            f"error {error:.3e}, plain PyTorch {allowed:.3e}"
        )


def assert_as_exact(results, plain, exact):
    """Results of an elementwise kernel beside plain PyTorch's and the truth, fp64's."""
    for got, theirs, want in zip(results, plain, exact, strict=True):
        if got.dtype == torch.float64:  # the truth itself is plain PyTorch's
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
        elif want.numel() < 100:  # plain PyTorch may be lucky
            unit = torch.finfo(got.dtype).eps
            torch.testing.assert_close(got.double(), want, rtol=4 * unit, atol=4 * unit)
        else:
            within_twice(got, theirs, want)
