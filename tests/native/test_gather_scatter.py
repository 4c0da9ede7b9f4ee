"""gather_selected and scatter_selected_ of the native core.

Every kind, dtype pair and mode, on every variant.
"""

import itertools

import core
import oracle
import pytest
import torch
from oracle import DTYPES, KINDS, name_of, same_bits

ALL = "all", torch.empty(0, dtype=torch.int32), 1, 1  # every entry, in order: no index
SHAPES = [(7, 10), (1, 5), (6, 1), (70, 131)]


def values_like(layout, shape, dtype):
    return torch.randn(oracle.values_shape(*layout, shape), dtype=torch.float64).to(dtype)


def compute(*dtypes):
    return torch.float64 if torch.float64 in dtypes else torch.float32


@pytest.mark.parametrize("which", ("some", "last", "all", "empty"))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_dtype_pair_and_mode(variant, kind, shape, which):
    pairs, index_dtypes = (
        itertools.product(DTYPES, DTYPES),
        itertools.cycle((torch.int32, torch.int64)),
    )
    for (matrix_dtype, values_dtype), index_dtype in zip(pairs, index_dtypes):
        layout = oracle.layout(kind, shape, which, index_dtype)
        matrix = torch.randn(shape, dtype=torch.float64).to(matrix_dtype)
        got = core.gather(
            matrix, layout, torch.empty(oracle.values_shape(*layout, shape), dtype=values_dtype)
        )
        assert same_bits(got, oracle.gather(matrix, layout).to(values_dtype)), (
            matrix_dtype,
            values_dtype,
        )

        values, mask = values_like(layout, shape, values_dtype), oracle.mask(layout, shape)
        copied, added = matrix.clone(), matrix.clone()
        core.scatter_(copied, values, layout)
        core.scatter_(added, values, layout, "add")
        spread, wide = oracle.spread(values, layout, shape), compute(matrix_dtype, values_dtype)
        assert same_bits(copied, torch.where(mask, spread.to(matrix_dtype), matrix))
        assert same_bits(
            added, torch.where(mask, (matrix.to(wide) + spread.to(wide)).to(matrix_dtype), matrix)
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("kind", KINDS)
def test_swap_restores_every_bit(variant, kind, dtype):
    layout = oracle.layout(kind, (11, 13), "all")
    # Any bit pattern: NaN of both kinds, -0.0, subnormals.
    noise = torch.randint(-(2**62), 2**62, (11 * 13 * 8,)).to(torch.int8)
    matrix = noise.view(dtype)[: 11 * 13].view(11, 13).clone()
    values = values_like(layout, matrix.shape, dtype)
    before, values_before = matrix.clone(), values.clone()
    core.scatter_(matrix, values, layout, "swap")
    padding = oracle.padding(layout, matrix.shape)
    assert same_bits(values[~padding], oracle.gather(before, layout)[~padding])
    assert same_bits(values[padding], values_before[padding])
    core.scatter_(matrix, values, layout, "swap")
    assert same_bits(matrix, before) and same_bits(values, values_before)


@pytest.mark.parametrize("threads", (1, 2, 3, 7))
@pytest.mark.parametrize("kind", (*KINDS, "all"))
def test_many_chunks_and_threads(kind, threads):
    shape = 301, 517
    matrix = torch.randn(shape)
    if kind == "all":
        assert same_bits(core.gather(matrix, ALL, torch.empty(shape), threads), matrix)
        return
    layout = oracle.layout(kind, shape, "some", block=(16, 32))
    values = core.gather(matrix, layout, torch.empty(oracle.values_shape(*layout, shape)), threads)
    assert same_bits(values, oracle.gather(matrix, layout))
    other = torch.zeros(shape)
    core.scatter_(other, values, layout, threads=threads)
    assert same_bits(other, oracle.spread(values, layout, shape))


@pytest.mark.parametrize("kind", KINDS)
def test_a_team_moves_what_one_thread_moves(kind):
    shape = 2001, 1201  # work enough for a team of seven
    layout = oracle.layout(kind, shape, "some", block=(16, 32))
    matrix, values = torch.randn(shape), torch.zeros(oracle.values_shape(*layout, shape))
    want = core.gather(matrix, layout, values.clone(), threads=1)
    spread = torch.zeros(shape)
    core.scatter_(spread, want, layout, threads=1)
    for threads in (2, 3, 7):
        assert same_bits(core.gather(matrix, layout, values.clone(), threads), want), threads
        other = torch.zeros(shape)
        core.scatter_(other, want, layout, threads=threads)
        assert same_bits(other, spread), threads


def wild_floats():
    """float32 of every exponent and sign, ties between 16-bit neighbours, NaN and infinities."""
    bits = torch.randint(-(2**31), 2**31, (100_000,)).int()
    halves = torch.arange(-(2**15), 2**15).to(torch.int16)
    steps = torch.cat([halves.view(t).float() for t in (torch.bfloat16, torch.float16)])
    ties = torch.cat([steps, (steps[:-1].double() / 2 + steps[1:].double() / 2).float()])
    return torch.cat(
        [bits.view(torch.float32), ties, torch.tensor([65519.99, 65520.0, -65520.0, 3.4e38, 1e-45])]
    )


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=name_of)
def test_conversions_of_16_bits(variant, dtype):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)[None]
    wide = core.gather(every, ALL, torch.empty(1, 2**16))
    assert torch.equal(wide.isnan(), every.isnan())
    assert same_bits(wide[~wide.isnan()], every[~every.isnan()].float())

    floats = wild_floats()[None]
    narrow = core.gather(floats, ALL, torch.empty(floats.shape, dtype=dtype))
    assert torch.equal(narrow.isnan(), floats.isnan())
    assert same_bits(narrow[~narrow.isnan()], floats[~floats.isnan()].to(dtype))


def test_cuda_op_says_why_it_cannot():
    matrix = torch.zeros(2, 2)
    with pytest.raises(
        (RuntimeError, ValueError),
        match="scatter_selected_cuda_: this build has no CUDA: .|matrix: .* on a CUDA device",
    ):
        core.C.scatter_selected_cuda_(matrix, ALL, matrix, "copy", 0)
