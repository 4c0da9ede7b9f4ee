"""Layouts: how a compact `values` tensor maps onto a matrix [rows, columns]. Shared by the
references and shape functions.

A layout is `(kind, index, block_h, block_w)`:

| kind      | index                                                     | values          |
|-----------|-----------------------------------------------------------|-----------------|
| "rows"    | [R] row numbers                                           | [R, columns]    |
| "columns" | [C] column numbers                                        | [rows, C]       |
| "blocks"  | [n, 2] (block_row, block_col)                             | [n, bh, bw]     |
| "entries" | [nnz] flat positions row * columns + column               | [nnz]           |

Every index is sorted and unique, int32 or int64. Blocks that reach past the edge are padded with
zeros.
"""

import torch


def values_shape(kind, index, block_h, block_w, shape):
    """Shape of `values` for a matrix of `shape`."""
    n = index.shape[0]
    if kind == "rows":
        return (n, shape[1])
    if kind == "columns":
        return (shape[0], n)
    if kind == "blocks":
        return (n, block_h, block_w)
    _check_kind(kind)
    return (n,)


def coordinates(kind, index, block_h, block_w, shape):
    """Row and column (int64, broadcastable to `values`) of every value; padding lies outside of the
    matrix.
    """
    index = index.long()
    if kind == "rows":
        return index[:, None], torch.arange(shape[1], device=index.device)
    if kind == "columns":
        return torch.arange(shape[0], device=index.device)[:, None], index
    if kind == "blocks":
        inner_row = torch.arange(block_h, device=index.device)[:, None]
        inner_column = torch.arange(block_w, device=index.device)
        return (
            index[:, 0, None, None] * block_h + inner_row,
            index[:, 1, None, None] * block_w + inner_column,
        )
    return index // max(shape[1], 1), index % max(shape[1], 1)


def inside(row, column, shape):
    """Bool mask over `values`: False where a block is padding."""
    return (row < shape[0]) & (column < shape[1])


def explain_layout(kind, index=None) -> None:
    """Raise TypeError for what is no kind and index, above all for a Selection: the dispatcher
    would speak of casts.
    """
    way_out = "a selection is given as its layout: *selection.layout"
    if type(kind) is not str:
        raise TypeError(
            f"kind: expected 'rows', 'columns', 'blocks' or 'entries', got {_told(kind)}; {way_out}"
        )
    raise TypeError(f"index: expected an integer tensor, got {_told(index)}; {way_out}")


def _told(value) -> str:
    return f"a Tensor {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)


def check_layout(kind, index, block_h, block_w):
    """Errors of a layout that need no data: dimensions, dtype, block size. Names the argument and
    its value.
    """
    _check_kind(kind)
    dims = 2 if kind == "blocks" else 1
    if index.dim() != dims or (kind == "blocks" and index.size(1) != 2):
        want = "[n, 2]" if kind == "blocks" else "[n]"
        raise ValueError(
            f"index: expected shape {want} for kind {kind!r}, got {tuple(index.shape)}"
        )
    if index.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"index: expected int32 or int64, got {index.dtype}")
    if block_h < 1 or block_w < 1:
        raise ValueError(f"block_size: expected positive sizes, got ({block_h}, {block_w})")


def _check_kind(kind):
    if kind not in ("rows", "columns", "blocks", "entries"):
        raise ValueError(f"kind: expected 'rows', 'columns', 'blocks' or 'entries', got {kind!r}")


def check_matrix(matrix):
    if matrix.dim() != 2:
        raise ValueError(
            f"matrix: expected 2 dimensions [rows, columns], got shape {tuple(matrix.shape)}"
        )
    if not matrix.is_floating_point():
        raise TypeError(f"matrix: expected a floating-point dtype, got {matrix.dtype}")


def check_values(values, kind, index, block_h, block_w, shape, name="values"):
    if not values.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point dtype, got {values.dtype}")
    want = values_shape(kind, index, block_h, block_w, shape)
    if tuple(values.shape) != tuple(want):
        raise ValueError(
            f"{name}: expected shape {tuple(want)} for kind {kind!r} on a matrix {tuple(shape)},"
            f" got {tuple(values.shape)}"
        )
