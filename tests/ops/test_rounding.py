"""Numbers of fp32 kept in 16 bits: unbiased by chance, exact with a correction.

The plain PyTorch that says what is meant.
"""

import pytest
import torch

from sparse_ft.ops._rounding import join, random_words, round_by_chance, seed_of, split

DTYPES = torch.bfloat16, torch.float16


def words(count, seed=1, step=1, stream=0):
    return random_words(seed, step, count, stream)


def test_words_are_uniform_and_each_number_that_makes_them_counts():
    count = 1 << 16
    base = words(count)
    assert base.min() >= 0 and base.max() < 1 << 32 and base.unique().numel() > count * 0.9999
    ones = torch.stack([(base >> bit & 1).double().mean() for bit in range(32)])
    assert ((ones - 0.5).abs() < 5 * 0.5 / count**0.5).all()
    neighbours = torch.corrcoef(torch.stack([base[:-1], base[1:]]).double())[0, 1]
    assert neighbours.abs() < 5 / count**0.5
    for other in (
        words(count, seed=2),
        words(count, step=2),
        words(count, stream=1),
        words(count, stream=2),
    ):
        flipped = torch.stack([((base ^ other) >> bit & 1).double().mean() for bit in range(32)])
        assert ((flipped - 0.5).abs() < 5 * 0.5 / count**0.5).all()
    # An entry's word does not depend on how many there are.
    assert torch.equal(words(100), base[:100])


def test_seeds_of_tensors_differ_and_fit():
    seeds = [seed_of(seed, number) for seed in (-1, 0, 1, 1 << 40) for number in range(500)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 1 << 48 for seed in seeds)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x", [1.001, -3.1416, 1e-3, 7.7e-7, -3e-8, 1000.3, 1e-39])
def test_right_in_expectation(dtype, x):
    count = 1 << 16
    exact = torch.tensor(x).double()
    rounded = round_by_chance(torch.full((count,), x), words(count), dtype).double()
    found = rounded.unique()
    unit = (
        2.0**-24
        if dtype == torch.float16 and abs(x) < 2.0**-14
        else max(torch.finfo(dtype).eps * abs(x), 2.0**-133)
    )
    assert (
        found.numel() <= 2
        and found.max() - found.min() <= unit * 1.01
        and ((found - exact).abs() <= unit).all()
    )
    assert (rounded.mean() - exact).abs() <= 5 * 0.5 * unit / count**0.5 + 2.0**-48


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_the_dtype_holds_stays(dtype):
    held = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    rounded = round_by_chance(held.float(), words(held.numel()), dtype)
    assert torch.equal(rounded.isnan(), held.isnan())
    assert torch.equal(
        rounded.view(torch.int16)[~held.isnan()], held.view(torch.int16)[~held.isnan()]
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_lies_beyond_goes_to_the_nearest(dtype):
    largest = torch.finfo(dtype).max
    x = torch.tensor(
        [
            largest,
            largest * (1 + 2**-13),
            largest * 1.005,
            float("inf"),
            -largest * 1.0005,
            float("-inf"),
        ]
    )
    for word in (0, (1 << 32) - 1):
        assert torch.equal(round_by_chance(x, torch.full(x.shape, word), dtype), x.to(dtype))


def test_split_and_join_give_every_bit_back():
    bits = torch.randint(
        -(1 << 31), 1 << 31, (1 << 18,), generator=torch.Generator().manual_seed(0)
    ).to(torch.int32)
    edges = [
        0,
        1,
        0x7FFF,
        0x8000,
        0x8001,
        0xFFFF,
        0x3F800000,
        0x3F808000,
        0x7F7F7FFF,
        0x7F7F8000,
        0x7F7FFFFF,
        0x7F800000,
    ]
    edges = torch.tensor([*edges, *(edge - (1 << 31) for edge in edges)], dtype=torch.int32)
    x = torch.cat([bits, edges]).view(torch.float32)
    high, low = split(x)
    nan = x.isnan()
    assert torch.equal(join(high, low).view(torch.int32)[~nan], x.view(torch.int32)[~nan])
    assert join(high, low)[nan].isnan().all() and high[nan].isnan().all()
    assert high.dtype == torch.bfloat16 and low.dtype == torch.int16
    halves = low == -(1 << 15)
    assert torch.equal(high[~nan & ~halves], x[~nan & ~halves].to(torch.bfloat16))
    assert ((high.float().abs() > x.abs()) | nan)[halves].all()  # away from zero
