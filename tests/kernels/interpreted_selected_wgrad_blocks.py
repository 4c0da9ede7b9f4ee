"""The Triton kernels of blocks in every dtype they may see.

Either grouping, every width of tile, split and accumulated.
"""

import pytest
import torch
from oracle import CASES, DEVICE, bits, gather, random, split_tokens, within_twice
from sparse_ft.kernels.selected_wgrad import selected_wgrad_triton, selected_wgrad_triton_
from sparse_ft.kernels.selected_wgrad_blocks import wgrad_of_blocks
from sparse_ft.kernels.selected_wgrad_gemm import blocks_by_panel, blocks_by_strips, dense_blocks
from sparse_ft.kernels.selected_wgrad_tables import panels

from sparse_ft.kernels import selected_wgrad, selected_wgrad_blocks, selected_wgrad_gemm

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
METHODS = wgrad_of_blocks, blocks_by_panel, blocks_by_strips


def grid(rows, columns, block_h, block_w, blocks):
    return (
        rows,
        columns,
        "blocks",
        torch.tensor(blocks, device=DEVICE).reshape(-1, 2),
        block_h,
        block_w,
    )


@pytest.fixture(autouse=True)
def panels_however_many(monkeypatch):
    """On matrices as small as these, strips of the dense product would be chosen."""
    monkeypatch.setattr(selected_wgrad_gemm, "DENSE_LOADS", float("inf"))


NAMED = {name: case for name, case in CASES.items() if case[2] == "blocks" and case[3].numel()}
NAMED |= {
    # More than one tile of 256, and a ragged last one.
    "one-block-row": grid(40, 330, 16, 16, [[1, i] for i in range(21)]),
    "one-block-column": grid(330, 40, 16, 16, [[i, 2] for i in range(21)]),
    "columns-of-32": grid(100, 70, 32, 32, [[0, 1], [1, 1], [2, 0], [2, 1], [3, 1], [3, 2]]),
    # A tile of 256 cuts a block.
    "panel-of-64": grid(64, 256, 64, 48, [[0, 0], [0, 2], [0, 3], [0, 4], [0, 5]]),
    "panel-of-two-tiles": grid(150, 32, 150, 16, [[0, 0], [0, 1]]),
    "every-block": grid(48, 80, 16, 16, [[i, j] for i in range(3) for j in range(5)]),
}


def compute(method, case, grad_output, input, values=None, dtype=torch.float32):
    _, _, _, index, block_h, block_w = case
    into = (
        torch.empty(index.size(0), block_h, block_w, dtype=dtype, device=DEVICE)
        if values is None
        else values.clone()
    )
    if method is wgrad_of_blocks:
        method([(into, grad_output, input, index, block_h, block_w)], values is not None)
    else:
        method(into, grad_output, input, index, block_h, block_w, values is not None)
    return into


def expected(case, grad_output, input, dtype):
    return gather(grad_output.to(dtype).T @ input.to(dtype), case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMED)
def test_every_case(name, dtype):
    case = NAMED[name]
    operands = random(21, case[0], dtype=dtype), random(21, case[1], dtype=dtype)
    plain, exact = (
        expected(case, *operands, torch.float32),
        expected(case, *operands, torch.float64),
    )
    for method in METHODS:
        within_twice(compute(method, case, *operands), plain, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["blocks-ragged", "one-block-row", "columns-of-32"])
def test_splits_over_tokens(name, dtype, monkeypatch):
    """150 tokens in three parts; the operands' tokens are whole numbers, so that the order of the
    sum cannot show.
    """
    case = NAMED[name]
    operands = [torch.randint(-8, 9, (150, size), device=DEVICE).to(dtype) for size in case[:2]]
    whole = compute(wgrad_of_blocks, case, *operands)
    split_tokens(monkeypatch, 40)
    parts = []
    part = selected_wgrad_blocks.chunk_of_tokens
    monkeypatch.setattr(
        selected_wgrad_blocks, "chunk_of_tokens", lambda *work: parts.append(part(*work)) or 64
    )
    assert torch.equal(compute(wgrad_of_blocks, case, *operands), whole)
    assert parts == [64]
    start = torch.full_like(whole, 3)
    assert torch.equal(compute(wgrad_of_blocks, case, *operands, values=start), whole + 3)
    assert torch.equal(whole, expected(case, *operands, torch.float64).float())


@pytest.mark.parametrize("name", ["blocks-ragged", "one-block-column"])
def test_accumulates_and_rounds_once(name):
    case = NAMED[name]
    operands = random(21, case[0], dtype=torch.bfloat16), random(21, case[1], dtype=torch.bfloat16)
    start = random(case[3].size(0), *case[4:], dtype=torch.bfloat16)
    exact = start.double() + expected(case, *operands, torch.float64)
    for method in METHODS:
        within_twice(compute(method, case, *operands, values=start), exact.bfloat16(), exact)


VIEWS = {  # of 21 tokens of 48 features
    "transposed": lambda: random(48, 21, dtype=torch.float16).t(),
    "one-token-for-all": lambda: random(1, 48, dtype=torch.float16).expand(21, 48),
    "one-number-for-all": lambda: random(1, 1, dtype=torch.float16).expand(21, 48),
    "every-other-feature": lambda: random(21, 96, dtype=torch.float16)[:, ::2],
    "every-third-token": lambda: random(63, 48, dtype=torch.float16)[::3],
    "part-of-wider": lambda: random(21, 80, dtype=torch.float16)[:, 16:64],
    "off-by-one": lambda: random(21, 64, dtype=torch.float16)[:, 1:49],
    "odd-start": lambda: random(21 * 48 + 1, dtype=torch.float16)[1:].view(21, 48),
}


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("name", VIEWS)
def test_views(name, accumulate):
    """The bits of contiguous operands, and no more than an element a copy where 16 bytes would not
    be aligned.
    """
    case, view = grid(48, 48, 16, 16, [[0, 0], [1, 2], [2, 2]]), VIEWS[name]()
    wide = view.stride(1) == 1 and view.data_ptr() % 16 == 0 and view.stride(0) % 16 == 0
    if view.stride(1) == 1:
        assert selected_wgrad_blocks._vector(view, 16) == (8 if wide else 1)
    assert selected_wgrad_blocks._vector(view.contiguous(), 16) == (1 if name == "odd-start" else 8)
    assert wide == (
        name
        not in (
            "transposed",
            "one-number-for-all",
            "every-other-feature",
            "off-by-one",
            "odd-start",
        )
    )
    other = random(21, 48, dtype=torch.float16)
    for operands in ((view, other), (other, view)):
        into, want = (torch.ones(3, 16, 16, device=DEVICE) for _ in range(2))
        if accumulate:
            selected_wgrad_triton_(into, *operands, *case[2:])
            selected_wgrad_triton_(want, *(x.contiguous() for x in operands), *case[2:])
        else:
            into = selected_wgrad_triton(*operands, *case[2:])
            want = selected_wgrad_triton(*(x.contiguous() for x in operands), *case[2:])
        assert torch.equal(bits(into), bits(want))
        exact = expected(case, *operands, torch.float64) + accumulate
        within_twice(into, expected(case, *operands, torch.float32) + accumulate, exact)


def test_a_stride_that_is_not_kept_is_seen(monkeypatch):
    """What the comparison of views is for: tokens that are read as if they followed one another."""
    monkeypatch.setattr(
        selected_wgrad, "_row_major", lambda _, operand: operand.as_strided(operand.shape, (48, 1))
    )
    with pytest.raises(AssertionError):
        test_views("every-third-token", False)


def test_repeats_give_the_same_bits(monkeypatch):
    split_tokens(monkeypatch, 40)
    case = NAMED["columns-of-32"]
    operands = random(150, case[0], dtype=torch.float16), random(150, case[1], dtype=torch.float16)
    first = compute(wgrad_of_blocks, case, *operands)
    for _ in range(20 if DEVICE == "cuda" else 3):
        assert torch.equal(bits(compute(wgrad_of_blocks, case, *operands)), bits(first))


def test_gathers_no_more_than_the_workspace(monkeypatch):
    case = NAMED["one-block-row"]
    operands = random(21, case[0]), random(21, case[1])
    whole, gathered, product = (
        compute(blocks_by_panel, case, *operands),
        [],
        selected_wgrad_gemm.product,
    )
    monkeypatch.setattr(
        selected_wgrad_gemm, "product", lambda p, q: gathered.append(q.numel() * 4) or product(p, q)
    )
    monkeypatch.setattr(selected_wgrad_gemm, "WORKSPACE", 21 * 16 * 4 * 5)
    within_twice(
        compute(blocks_by_panel, case, *operands), whole, expected(case, *operands, torch.float64)
    )
    assert len(gathered) == 5 and max(gathered) <= selected_wgrad_gemm.WORKSPACE


@pytest.mark.parametrize("name", ["blocks-ragged", "blocks-odd", "one-block-column", "every-block"])
def test_strips_of_any_height(name, monkeypatch):
    """Whole numbers: the rows of a strip cannot show."""
    case = NAMED[name]
    operands = [torch.randint(-8, 9, (21, size), device=DEVICE).half() for size in case[:2]]
    exact = expected(case, *operands, torch.float64).float()
    for block_rows in (1, 2, 100):
        monkeypatch.setattr(selected_wgrad_gemm, "WORKSPACE", block_rows * case[4] * case[1] * 4)
        assert torch.equal(compute(blocks_by_strips, case, *operands), exact)
        assert torch.equal(compute(blocks_by_strips, case, *operands, values=exact), 2 * exact)


@pytest.mark.parametrize(
    "dtype, least, most", [(torch.bfloat16, 0.25, 0.4), (torch.float32, 0.5, 0.7)]
)
def test_many_blocks_are_strips(dtype, least, most, monkeypatch):
    """64 x 64 blocks of a large matrix: from a third of it on, wherever they lie.

    Each call does what the choice says.
    """
    monkeypatch.undo()
    x = torch.empty(1, 4096, dtype=dtype, device=DEVICE)
    order = torch.randperm(64 * 64, device=DEVICE)
    for share, strips in ((least, False), (most, True)):
        flat = order[: int(share * len(order))].sort().values
        index = torch.stack([flat // 64, flat % 64], 1).int()
        assert dense_blocks(x, x, index, 64, 64) == strips
    called = []
    for name in ("wgrad_of_blocks", "blocks_by_panel", "blocks_by_strips"):
        monkeypatch.setattr(selected_wgrad, name, lambda *_, name=name: called.append(name))
    selected_wgrad_triton(x, x, "blocks", index, 64, 64)
    selected_wgrad_triton(x, x, "blocks", index[:9], 64, 64)
    assert called == [
        "blocks_by_strips",
        "wgrad_of_blocks" if dtype == torch.bfloat16 else "blocks_by_panel",
    ]


def test_either_side_is_shared():
    shared = [
        panels(NAMED[name][3], 16, 16).shared for name in ("one-block-row", "one-block-column")
    ]
    assert shared == [0, 1]
