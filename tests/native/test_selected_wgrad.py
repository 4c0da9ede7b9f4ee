"""selected_wgrad of the native core against fp64, allowed twice plain PyTorch's own error in the
dtype of the operands.
"""

import itertools

import core
import oracle
import pytest
import torch
from oracle import DTYPES, KINDS, name_of, same_bits

# One token, odd, one row or column, more than one chunk of tokens, several strips.
SIZES = [(1, 7, 10), (5, 1, 9), (9, 6, 1), (33, 70, 131), (300, 37, 45), (70, 90, 110)]
BLOCKS = [(3, 4), (16, 16), (1, 7), (5, 40)]


def operands(size, dtype, strided=False):
    tokens, rows, columns = size
    made = [torch.randn(tokens, n, dtype=torch.float64).to(dtype) for n in (rows, columns)]
    if not strided:
        return made
    return [
        torch.full((tokens, n + 5), float("nan"), dtype=dtype)[:, 2 : n + 2].copy_(m)
        for m, n in zip(made, (rows, columns))
    ]


def exact(grad_output, input, layout):
    return oracle.gather(grad_output.double().T @ input.double(), layout)


def plain(grad_output, input, layout, dtype):
    """PyTorch in the dtype of the operands (fp32 where the kernel accumulates in fp32), rounded to
    the dtype of the values.

    The tokens are summed last to first: in fp64 it would otherwise be the oracle itself, with no
    error to compare with.
    """
    wide = torch.promote_types(grad_output.dtype, torch.float32)
    return oracle.gather(grad_output.to(wide).flip(0).T @ input.to(wide).flip(0), layout).to(dtype)


def slack(tokens, *dtypes):
    """What both may round where the other is exact.

    An ulp of a sum of `tokens` products of normal variates.
    """
    return 16 * max(torch.finfo(dtype).eps for dtype in dtypes) * tokens**0.5


def check(layout, size, dtype, values_dtype, **keywords):
    grad_output, input = operands(size, dtype, strided=True)
    want, compared = (
        exact(grad_output, input, layout),
        plain(grad_output, input, layout, values_dtype),
    )
    values = core.wgrad(
        torch.full(want.shape, float("nan"), dtype=values_dtype),
        grad_output,
        input,
        layout,
        **keywords,
    )
    ulps = slack(size[0], torch.promote_types(dtype, torch.float32), values_dtype)
    oracle.assert_as_good_as_plain(values, want, compared, ulps)
    assert not values[oracle.padding(layout, (size[1], size[2]))].any()

    before = torch.randn(want.shape, dtype=torch.float64).to(values_dtype)
    before[oracle.padding(layout, (size[1], size[2]))] = 0.5
    grown = core.wgrad(before.clone(), grad_output, input, layout, accumulate=True, **keywords)
    oracle.assert_as_good_as_plain(grown, want + before, compared + before, ulps)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_dtype(variant, kind, size, dtype):
    for values_dtype, index_dtype in zip(DTYPES, itertools.cycle((torch.int32, torch.int64))):
        check(oracle.layout(kind, size[1:], "some", index_dtype), size, dtype, values_dtype)


@pytest.mark.parametrize("which", ("last", "all", "empty"))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES[:5], ids=str)
def test_one_all_and_no_index(variant, kind, size, which):
    check(oracle.layout(kind, size[1:], which), size, torch.float32, torch.float32)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("which", ("some", "last", "all"))
def test_block_sizes_and_ragged_edges(variant, block, which):
    check(
        oracle.layout("blocks", (37, 83), which, block=block),
        (40, 37, 83),
        torch.float32,
        torch.float32,
    )
    tall = oracle.layout("blocks", (300, 83), which, block=(block[0] * 60, block[1]))
    check(tall, (10, 300, 83), torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize("kind", ("rows", "columns"))
def test_more_than_one_tile(variant, kind):
    grad_output, input = operands((20, 500, 600), torch.float32)
    count = {"rows": 500, "columns": 600}[kind]
    got = core.wgrad(
        torch.empty(500, 600), grad_output, input, (kind, torch.arange(count), 1, 1), threads=3
    )
    want = grad_output.double().T @ input.double()
    oracle.assert_as_good_as_plain(got, want, grad_output.T @ input, slack(20, torch.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("size", [(300, 210, 230), (3, 2500, 70), (3, 70, 2500)], ids=str)
@pytest.mark.parametrize("kind", ("rows", "columns"))
def test_nearly_all_rows_and_columns(variant, kind, size, dtype):
    """So many that both operands are packed once.

    Several chunks of tokens, several tiles, several parts of the result.
    """
    count = size[1] if kind == "rows" else size[2]
    layout = (
        kind,
        torch.cat([torch.arange(1, count // 2), torch.arange(count // 2 + 1, count)]),
        1,
        1,
    )
    wide = torch.promote_types(dtype, torch.float32)
    check(layout, size, dtype, wide)
    grad_output, input = operands(size, dtype)
    shape = oracle.values_shape(*layout, size[1:])
    one, *others = (
        core.wgrad(torch.empty(shape, dtype=wide), grad_output, input, layout, threads=n)
        for n in (1, 2, 3)
    )
    assert all(same_bits(found, one) for found in others)
    if kind == "columns":
        chosen = input[:, layout[1]].contiguous()
        assert same_bits(
            core.wgrad(torch.empty(shape, dtype=wide), grad_output, chosen, layout), one
        )


def test_a_whole_matrix(variant):
    grad_output, input = operands((300, 250, 270), torch.float32)
    layout = "all", torch.empty(0, dtype=torch.int64), 1, 1
    got = core.wgrad(torch.full((250, 270), float("nan")), grad_output, input, layout)
    rows = core.wgrad(torch.empty(250, 270), grad_output, input, ("rows", torch.arange(250), 1, 1))
    assert same_bits(got, rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(
    "rows, columns, density", [(300, 400, 0.06), (30, 5000, 0.01), (3, 5000, 0.001)], ids=str
)
def test_entries_of_several_blocks_and_units(variant, rows, columns, density, dtype):
    """Many entries and few are cut differently.

    Here each has several units of rows or blocks of columns.
    """
    index = torch.rand(rows * columns).lt(density).nonzero().flatten()
    layout, size = ("entries", index, 1, 1), (150, rows, columns)
    check(layout, size, dtype, torch.promote_types(dtype, torch.float32))
    grad_output, input = operands(size, dtype)
    one, *others = (
        core.wgrad(torch.empty(len(index)), grad_output, input, layout, threads=n)
        for n in (1, 2, 5)
    )
    assert all(same_bits(other, one) for other in others)


@pytest.mark.parametrize("tokens", (700, 1030))
def test_few_entries_of_many_tokens(variant, tokens):
    """Segments of several runs of tokens, the last of them ragged.

    Threads to spare share the rows of a segment.
    """
    index = torch.rand(60 * 3000).lt(0.01).nonzero().flatten()
    layout, size = ("entries", index, 1, 1), (tokens, 60, 3000)
    for threads in (1, 2, 40):
        check(layout, size, torch.float32, torch.float32, threads=threads)
    grad_output, input = operands(size, torch.float32)
    one, *others = (
        core.wgrad(torch.empty(len(index)), grad_output, input, layout, threads=n)
        for n in (1, 2, 5, 40)
    )
    assert all(same_bits(other, one) for other in others)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("tokens", (1, 11, 96))
@pytest.mark.parametrize("selected", (1, 12, 13, 32, 33))
@pytest.mark.parametrize("kind", ("rows", "columns"))
def test_few_and_not_so_few_rows_and_columns(variant, kind, selected, tokens, dtype):
    """Up to 32 are worked without packing the other operand.

    Whole and ragged vectors of it, whole and ragged tokens.
    """
    index = torch.randperm(50)[:selected].sort().values
    for other in (70, 5 * 64):
        shape = (50, other) if kind == "rows" else (other, 50)
        layout = kind, index, 1, 1
        check(layout, (tokens, *shape), dtype, torch.promote_types(dtype, torch.float32))
        grad_output, input = operands((tokens, *shape), dtype)
        values_shape = oracle.values_shape(*layout, shape)
        one, *others = (
            core.wgrad(torch.empty(values_shape), grad_output, input, layout, threads=n)
            for n in (1, 2, 3, 7)
        )
        assert all(same_bits(found, one) for found in others)


@pytest.mark.parametrize("kind", ("rows", "columns"))
def test_few_rows_of_a_wide_matrix(variant, kind):
    """More columns than one range of the result holds, whatever the number of threads."""
    wide, index = 6000, torch.arange(0, 60, 2)
    shape = (60, wide) if kind == "rows" else (wide, 60)
    check((kind, index, 1, 1), (13, *shape), torch.float32, torch.float32, threads=1)


def test_compact_input(variant):
    layout = oracle.layout("columns", (30, 41))
    grad_output, input = operands((50, 30, 41), torch.float32)
    full = core.wgrad(torch.empty(30, layout[1].numel()), grad_output, input, layout)
    chosen = input[:, layout[1].long()].contiguous()
    assert same_bits(core.wgrad(torch.empty_like(full), grad_output, chosen, layout), full)


@pytest.mark.parametrize("kind", KINDS)
def test_no_tokens(variant, kind):
    layout = oracle.layout(kind, (12, 9))
    values = torch.full(oracle.values_shape(*layout, (12, 9)), 3.0)
    core.wgrad(values, torch.empty(0, 12), torch.empty(0, 9), layout, accumulate=True)
    assert (values == 3).all()
    assert not core.wgrad(values, torch.empty(0, 12), torch.empty(0, 9), layout).any()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=name_of)
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_for_every_thread_count(variant, kind, dtype):
    size = 600, 130, 260
    layout = oracle.layout(kind, size[1:], "some", block=(16, 20))
    grad_output, input = operands(size, dtype)
    one, *others = (
        core.wgrad(
            torch.empty(oracle.values_shape(*layout, size[1:])),
            grad_output,
            input,
            layout,
            threads=n,
        )
        for n in (1, 2, 3, 7)
    )
    assert all(same_bits(other, one) for other in others)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_arrive_where_they_belong(variant, kind):
    layout = oracle.layout(kind, (40, 50), "all")
    grad_output, input = operands((70, 40, 50), torch.float32)
    grad_output[3, 7], input[69, 11], grad_output[5, 20] = float("nan"), float("nan"), float("inf")
    got = core.wgrad(
        torch.empty(oracle.values_shape(*layout, (40, 50))), grad_output, input, layout
    )
    want = oracle.gather(grad_output.T @ input, layout)
    assert want.isnan().any() and want.isinf().any()
    assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isinf(), want.isinf())


@pytest.mark.parametrize("kind", KINDS)
def test_operands_that_no_entry_needs_do_not_matter(variant, kind):
    layout = oracle.layout(kind, (40, 50), "last")
    grad_output, input = operands((70, 40, 50), torch.float32)
    used = oracle.mask(layout, (40, 50))
    want = exact(grad_output, input, layout)
    grad_output[:, ~used.any(1)], input[:, ~used.any(0)] = float("nan"), float("nan")
    got = core.wgrad(torch.empty(want.shape), grad_output, input, layout)
    oracle.assert_as_good_as_plain(got, want, want, slack(70, torch.float32))
