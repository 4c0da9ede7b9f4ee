"""Each method of single entries on its own, whatever the density would choose, in several parts and
strips.
"""

import pytest
import torch
from oracle import CASES, DEVICE, bits, gather, random, within_twice
from sparse_ft.kernels.selected_wgrad_entries import by_strips, dots, wgrad_of_entries

from sparse_ft.kernels import selected_wgrad_entries

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
TOKENS = 150  # more than one run of dots


def compact_dots(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selected_wgrad_entries, "COMPACT_BELOW", 1e9)
        dots(*arguments)


def all_dots(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selected_wgrad_entries, "COMPACT_BELOW", 0)
        dots(*arguments)


METHODS = pytest.mark.parametrize("method", [all_dots, compact_dots, by_strips])
NAMES = pytest.mark.parametrize("name", ["entries", "entries-many"])


def operands(case, dtype):
    return random(TOKENS, case[0], dtype=dtype), random(TOKENS, case[1], dtype=dtype)


def expected(case, grad_output, input, dtype):
    return gather(grad_output.to(dtype).T @ input.to(dtype), case)


@METHODS
@NAMES
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_method(method, name, dtype):
    case, wide = CASES[name], torch.promote_types(dtype, torch.float32)
    pair = operands(case, dtype)
    if dtype == torch.float64:  # nothing wider knows better, but sums of whole numbers are exact
        pair = [operand.round() for operand in pair]
    values = torch.empty(len(case[3]), dtype=wide, device=DEVICE)
    method(values, *pair, case[3], False)
    within_twice(values, expected(case, *pair, wide), expected(case, *pair, torch.float64))
    start = random(len(values), dtype=torch.bfloat16)
    into = start.clone()
    method(into, *pair, case[3], True)
    exact = start.double() + expected(case, *pair, torch.float64)
    within_twice(into, exact.bfloat16(), exact)


@METHODS
@NAMES
def test_a_small_workspace_gives_the_same_values(method, name, monkeypatch):
    """Whole numbers: neither the parts of the tokens nor the rows of a strip can show."""
    case = CASES[name]
    pair = [torch.randint(-8, 9, (TOKENS, size), device=DEVICE).half() for size in case[:2]]
    # Four rows of a strip; 128 tokens.
    monkeypatch.setattr(selected_wgrad_entries, "WORKSPACE", 4 * case[1] * 4)
    for accumulate in (False, True):
        values = torch.full((len(case[3]),), 3.0, device=DEVICE)
        method(values, *pair, case[3], accumulate)
        assert torch.equal(values, expected(case, *pair, torch.float64).float() + 3 * accumulate)


@METHODS
def test_repeats_give_the_same_bits(method):
    case = CASES["entries-many"]
    pair, values = (
        operands(case, torch.bfloat16),
        [torch.empty(len(case[3]), device=DEVICE) for _ in range(3)],
    )
    for into in values * (7 if DEVICE == "cuda" else 1):
        into.fill_(float("nan"))
        method(into, *pair, case[3], False)
    assert all(torch.equal(bits(into), bits(values[0])) for into in values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_density_chooses(dtype, monkeypatch):
    chosen = []
    for name in ("dots", "by_strips"):
        monkeypatch.setattr(selected_wgrad_entries, name, lambda *_, name=name: chosen.append(name))
    edge = int(selected_wgrad_entries.STRIPS_FROM[dtype.itemsize] * 1000 * 1000)
    x = torch.empty(1, 1000, dtype=dtype, device=DEVICE)
    for nnz in (edge - 1, edge + 1):
        wgrad_of_entries(
            torch.empty(nnz, device=DEVICE), x, x, torch.arange(nnz, device=DEVICE), False
        )
    assert chosen == ["dots", "by_strips"]


def test_a_part_fits_the_grid():
    """A program for each 64 tokens in the grid's second dimension, which ends at 65535, however
    little the features take.
    """
    for tokens, sizes in ((10**7, (1, 1, 2, 2)), (10**5, (4096, 4096, 2, 2)), (1, (1, 1, 8, 8))):
        part = selected_wgrad_entries._part(tokens, *sizes)
        assert 0 < part // 64 <= 65535 and part % selected_wgrad_entries.BLOCK_T == 0
