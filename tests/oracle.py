"""What the ops are measured against.

Layouts spelled out entry by entry, dense mathematics, tolerances. On the CPU, whatever the device.
"""

import functools

import torch

KINDS = ("rows", "columns", "blocks", "entries")
ACTIVATIONS = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": functools.partial(torch.nn.functional.gelu, approximate="tanh"),
    "relu": torch.nn.functional.relu,
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
BITS = {
    torch.float32: torch.int32,
    torch.float64: torch.int64,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


def layout(kind, shape, which="some", index_dtype=torch.int32, block=(3, 4), device="cpu"):
    """A layout `(kind, index, block_h, block_w)` on a matrix of `shape`. which: "some", "last",
    "all" or "empty".
    """
    height, width = block if kind == "blocks" else (1, 1)
    across = -(-shape[1] // width)
    count = {
        "rows": shape[0],
        "columns": shape[1],
        "entries": shape[0] * shape[1],
        "blocks": -(-shape[0] // height) * across,
    }[kind]
    generator = torch.Generator().manual_seed(count)
    number = {"some": -(-count // 3), "last": min(count, 1), "all": count, "empty": 0}[which]
    flat = (
        torch.arange(count, device="cpu")[count - number :]
        if which == "last"
        else torch.randperm(count, generator=generator, device="cpu")[:number].sort().values
    )
    index = (
        torch.stack((flat // max(across, 1), flat % max(across, 1)), 1)
        if kind == "blocks"
        else flat
    )
    return kind, index.to(device, index_dtype), height, width


def places(kind, index, block_h, block_w, shape):
    """[(k, row, column)] of every k of the flattened `values` that is not padding, straight from
    the table.
    """
    rows, columns = shape
    index = index.tolist()
    if kind == "rows":
        return [(i * columns + c, row, c) for i, row in enumerate(index) for c in range(columns)]
    if kind == "columns":
        return [
            (r * len(index) + i, r, column) for r in range(rows) for i, column in enumerate(index)
        ]
    if kind == "entries":
        return [(k, flat // columns, flat % columns) for k, flat in enumerate(index)]
    found = []
    for b, (block_row, block_col) in enumerate(index):
        for r in range(block_h):
            for c in range(block_w):
                row, column = block_row * block_h + r, block_col * block_w + c
                if row < rows and column < columns:
                    found.append(((b * block_h + r) * block_w + c, row, column))
    return found


_known = {}


def _places(layout, shape):
    """`places` as three index tensors; worked out once, for Python is slow."""
    kind, index, *block = layout
    key = kind, tuple(index.shape), index.cpu().numpy().tobytes(), *block, *shape
    if key not in _known:
        found = torch.tensor(places(*layout, shape), dtype=torch.int64, device="cpu").reshape(-1, 3)
        _known[key] = found[:, 0], found[:, 1], found[:, 2]
    return _known[key]


def values_shape(kind, index, block_h, block_w, shape):
    n = len(index)
    return {
        "rows": (n, shape[1]),
        "columns": (shape[0], n),
        "blocks": (n, block_h, block_w),
        "entries": (n,),
    }[kind]


def mask(layout, shape):
    """Bool [rows, columns], True where an entry is selected."""
    _, row, column = _places(layout, shape)
    out = torch.zeros(shape, dtype=torch.bool, device="cpu")
    out[row, column] = True
    return out


def gather(matrix, layout):
    """Values of `matrix`, with zero where a block is padding."""
    values = torch.zeros(values_shape(*layout, matrix.shape), dtype=matrix.dtype, device="cpu")
    k, row, column = _places(layout, matrix.shape)
    values.view(-1)[k] = matrix.cpu()[row, column]
    return values


def spread(values, layout, shape):
    """Dense matrix of `shape` that holds `values` at the selected entries, zero elsewhere."""
    k, row, column = _places(layout, shape)
    dense = torch.zeros(shape, dtype=values.dtype, device="cpu")
    dense[row, column] = values.cpu().reshape(-1)[k]
    return dense


def padding(layout, shape):
    """Bool, shaped as values: True where a block is padding."""
    out = torch.ones(values_shape(*layout, shape), dtype=torch.bool, device="cpu")
    out.view(-1)[_places(layout, shape)[0]] = False
    return out


def bits(tensor):
    """The bytes as integers, so that NaN and -0.0 compare as what they are."""
    return tensor.detach().cpu().contiguous().view(BITS[tensor.dtype])


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def assert_as_good_as_plain(got, want, plain, slack):
    """`got` is at most twice as far from the fp64 `want` as plain PyTorch is, plus `slack` for a
    last rounding.
    """
    assert got.shape == want.shape and got.isfinite().all()
    error, allowed = (
        (t.detach().cpu().double() - want).abs().amax().item() if t.numel() else 0.0
        for t in (got, plain)
    )
    assert error <= 2 * allowed + slack, (
        f"error {error:.3e}, plain PyTorch's {allowed:.3e}, slack {slack:.1e}"
    )


def assert_elementwise(results, want, plain, slack=2.0**-126):
    """Each of the results, contiguous, is as good as plain PyTorch's in its largest and in its mean
    error.
    """
    for got, exact, theirs in zip(results, want, plain, strict=True):
        assert got.dtype == theirs.dtype and got.is_contiguous()
        # Then the truth itself is plain PyTorch's, whose slopes lose |input| eps to 1 - sigmoid.
        if got.dtype == torch.float64:
            slack = 200 * torch.finfo(torch.float64).eps * exact.abs().amax().item()
        assert_as_good_as_plain(got, exact, theirs, slack)
        error, bound = ((t.cpu().double() - exact).abs().mean().item() for t in (got, theirs))
        assert error <= 2 * bound + slack


def extreme_numbers(device):
    """Where exp overflows, underflows or vanishes beside 1, of either sign."""
    edge = [80.0, 87.0, 88.5, 104.0, 1e4, 1e30, float("inf"), 0.0, 1e-30, 1e-42, 13.0, 13.1]
    return torch.tensor([s * x for x in edge for s in (1, -1)], device=device)


def assert_where_known(results, want):
    """Wherever fp64 has an answer, fp32 has it too; what is subnormal may be zero."""
    for got, exact in zip(results, want, strict=True):
        known = ~exact.isnan()
        torch.testing.assert_close(got.cpu().double()[known], exact[known], rtol=1e-4, atol=1e-35)


def matrices(shape, dtype, device="cpu"):
    """The same numbers in memory in different ways: {name: matrix}."""
    rows, columns = shape
    base = torch.randn(shape, dtype=torch.float64).to(dtype)
    empty = functools.partial(torch.empty, dtype=dtype, device=device)
    made = {
        "contiguous": empty(shape),
        "permuted": empty(columns, rows).T,
        "sliced": empty(rows + 3, columns + 2)[2 : rows + 2, 1 : columns + 1],
        "strided": empty(2 * rows, 3 * columns)[::2, ::3],
    }
    for matrix in made.values():
        matrix.copy_(base)
    return made
