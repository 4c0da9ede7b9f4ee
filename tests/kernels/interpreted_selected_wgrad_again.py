"""A product that is asked for again, of operands that lie as they did, derives nothing, and has the
bits that it would have had.
"""

import pytest
import torch
from oracle import CASES, bits, random, split_tokens
from sparse_ft.kernels.selected_wgrad import selected_wgrad_triton
from sparse_ft.kernels.selected_wgrad_entries import Dots

from sparse_ft.kernels import (
    selected_wgrad,
    selected_wgrad_again,
    selected_wgrad_entries,
    selected_wgrad_gemm,
)

TOKENS = 70
CUT_SHORT = ["blocks-ragged", "entries"]


@pytest.fixture(autouse=True)
def nothing_is_dense(monkeypatch):
    """On matrices as small as these, strips of the dense product would be chosen."""
    monkeypatch.setattr(selected_wgrad_gemm, "DENSE_LOADS", float("inf"))
    monkeypatch.setattr(selected_wgrad_again, "dense_entries", lambda *_: False)
    monkeypatch.setattr("sparse_ft.kernels.selected_wgrad_entries.dense_entries", lambda *_: False)


def operands(case, tokens=TOKENS, dtype=torch.bfloat16):
    return random(tokens, case[0], dtype=dtype), random(tokens, case[1], dtype=dtype)


def anew(case, *pair, dtype=None):
    """The same of an index that nobody has seen."""
    kind, index, *block = case[2:]
    return selected_wgrad_triton(*pair, kind, index.clone(), *block, dtype=dtype)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("parts", ["one part", "split"])
@pytest.mark.parametrize("name", CUT_SHORT)
def test_it_derives_nothing_and_has_the_same_bits(name, parts, dtype, monkeypatch):
    case = CASES[name]
    if parts == "split":
        split_tokens(monkeypatch, 32)
    selected_wgrad_triton(*operands(case), *case[2:], dtype=dtype)
    first, second = operands(case), operands(case)
    expected = [anew(case, *pair, dtype=dtype) for pair in (first, second)]
    monkeypatch.setattr(Dots, "of", lambda *_: pytest.fail("it is derived again"))
    monkeypatch.setattr(selected_wgrad, "_checked", lambda *_: pytest.fail("it is checked again"))
    for pair, want in zip((first, second), expected):
        values = selected_wgrad_triton(*pair, *case[2:], dtype=dtype)
        assert values.dtype == want.dtype and torch.equal(bits(values), bits(want))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("height", [64, 16])
def test_strips_are_taken_again(height, dtype, monkeypatch):
    """The whole product at once, or in strips, of which some hold no entry."""
    monkeypatch.setattr(selected_wgrad_again, "dense_entries", lambda *_: True)
    monkeypatch.setattr(selected_wgrad_entries, "dense_entries", lambda *_: True)
    monkeypatch.setattr(selected_wgrad_entries, "strip_height", lambda *_: height)
    rows, columns = 48, 40
    index = torch.cat([torch.arange(3, 9 * columns, 7), torch.arange(40 * columns, 48 * columns)])
    case = rows, columns, "entries", index, 1, 1
    selected_wgrad_triton(*operands(case), *case[2:], dtype=dtype)
    pair = operands(case)
    want = anew(case, *pair, dtype=dtype)
    monkeypatch.setattr(selected_wgrad, "_checked", lambda *_: pytest.fail("it is checked again"))
    values = selected_wgrad_triton(*pair, *case[2:], dtype=dtype)
    assert values.dtype == want.dtype and torch.equal(bits(values), bits(want))


@pytest.mark.parametrize("name", [*CUT_SHORT, "rows", "columns"])
def test_whatever_lies_otherwise_is_another_way(name):
    """Tokens, strides, an address that is not aligned, a dtype: each has its own values."""
    case = CASES[name]
    wide = tuple(random(TOKENS, size + 3, dtype=torch.bfloat16) for size in case[:2])
    pairs = [
        operands(case),
        operands(case, 9),
        operands(case, dtype=torch.float16),
        operands(case, dtype=torch.float32),
        tuple(each[:, :size] for each, size in zip(wide, case[:2])),
        tuple(each[:, 1 : size + 1] for each, size in zip(wide, case[:2])),
        tuple(random(size, TOKENS, dtype=torch.bfloat16).t() for size in case[:2]),
    ]
    for _ in range(2):
        for pair in pairs:
            values = selected_wgrad_triton(*pair, *case[2:])
            assert torch.equal(bits(values), bits(anew(case, *pair)))


def test_an_index_that_was_edited_is_another():
    case = CASES["entries"]
    kind, index, *block = case[2:]
    index, pair = index.clone(), operands(case)
    selected_wgrad_triton(*pair, kind, index, *block)
    index[0] += 1
    values = selected_wgrad_triton(*pair, kind, index, *block)
    assert torch.equal(bits(values), bits(anew((*case[:3], index, *block), *pair)))


def test_what_is_wrong_is_refused_after_what_was_right():
    case = CASES["entries"]
    grad_output, input = operands(case)
    selected_wgrad_triton(grad_output, input, *case[2:])
    with pytest.raises(ValueError, match="input must have the 70 tokens"):
        selected_wgrad_triton(grad_output, input[1:], *case[2:])


def test_of_many_lengths_the_last_ones_are_known(monkeypatch):
    monkeypatch.setattr(selected_wgrad_again, "REMEMBERED", 3)
    case = CASES["entries"]
    for tokens in range(1, 6):
        selected_wgrad_triton(*operands(case, tokens), *case[2:])
        assert 1 <= len(selected_wgrad_again.again_of(case[3])) <= 3
