import pytest
import torch
from oracle import CASES, DEVICE, bits, gather, places, random, within_twice
from sparse_ft.kernels.selected_wgrad import selected_wgrad_triton, selected_wgrad_triton_

from sparse_ft.kernels import selected_wgrad_gemm, selected_wgrad_strips

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
KINDS = ["rows", "columns", "blocks-ragged", "entries"]


@pytest.fixture(autouse=True)
def panels_however_many(monkeypatch):
    """On matrices as small as these, strips of the dense product would be chosen."""
    for name in ("DENSE_LOADS", "DENSE_SHARE"):
        monkeypatch.setattr(selected_wgrad_gemm, name, float("inf"))


def operands(case, tokens, dtype=torch.float32):
    return random(tokens, case[0], dtype=dtype), random(tokens, case[1], dtype=dtype)


def dense(grad_output, input, case, dtype=None):
    """The dense gradient followed by a gather; `dtype`: in which the product is taken."""
    return gather((grad_output.to(dtype).T @ input.to(dtype)), case)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tokens", [1, 70])
def test_every_layout(name, tokens):
    case = CASES[name]
    grad_output, input = operands(case, tokens)
    values = selected_wgrad_triton(grad_output, input, *case[2:])
    within_twice(
        values,
        dense(grad_output, input, case, torch.float32),
        dense(grad_output, input, case, torch.float64),
    )
    _, _, inside = places(*case)
    assert (values[~inside] == 0).all()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("operand_dtype", DTYPES)
@pytest.mark.parametrize("dtype", [None, *DTYPES])
def test_every_mix_of_dtypes(name, operand_dtype, dtype):
    case = CASES[name]
    grad_output, input = operands(case, 17, operand_dtype)
    values = selected_wgrad_triton(grad_output, input, *case[2:], dtype=dtype)
    wide = torch.promote_types(operand_dtype, torch.float32)
    assert values.dtype == (dtype or wide)
    plain = dense(grad_output, input, case, wide).to(values.dtype)
    within_twice(values, plain, dense(grad_output, input, case, torch.float64))


@pytest.mark.parametrize("name", KINDS)
def test_operands_of_different_dtypes(name):
    case = CASES[name]
    for other in (torch.bfloat16, torch.float32, torch.float64):
        grad_output, input = operands(case, 5, other)[0], operands(case, 5, torch.float16)[1]
        values = selected_wgrad_triton(grad_output, input, *case[2:], dtype=torch.float32)
        exact = dense(grad_output, input, case, torch.float64)
        within_twice(values, dense(grad_output, input, case, torch.float32), exact)


@pytest.mark.parametrize("name", [*KINDS, "blocks-tiled"])
def test_strided_operands_and_what_lies_beside_them(name):
    case = CASES[name]
    wide = [torch.full((9, x.size(1) + 3), float("nan"), device=DEVICE) for x in operands(case, 9)]
    views = [x[:, 1:-2].copy_(random(9, x.size(1) - 3)) for x in wide]
    values = selected_wgrad_triton(*views, *case[2:])
    within_twice(values, dense(*views, case, torch.float32), dense(*views, case, torch.float64))
    other = [x.t().contiguous().t() for x in views]
    assert torch.equal(selected_wgrad_triton(*other, *case[2:]), values)
    expanded = torch.ones(1, 1, device=DEVICE).expand(9, case[0])
    assert torch.equal(
        selected_wgrad_triton(expanded, views[1], *case[2:]),
        selected_wgrad_triton(expanded.contiguous(), views[1], *case[2:]),
    )


@pytest.mark.parametrize("name", KINDS)
def test_only_the_selected_part_is_used(name):
    """Rows and columns that no selected entry needs may hold anything."""
    case = CASES[name]
    grad_output, input = operands(case, 6)
    row, column, inside = places(*case)
    unused_rows = torch.ones(case[0], dtype=torch.bool, device=DEVICE).index_fill(
        0, row[inside], False
    )
    unused_columns = torch.ones(case[1], dtype=torch.bool, device=DEVICE).index_fill(
        0, column[inside], False
    )
    expected = selected_wgrad_triton(grad_output, input, *case[2:])
    grad_output[:, unused_rows], input[:, unused_columns] = float("nan"), float("nan")
    assert torch.equal(selected_wgrad_triton(grad_output, input, *case[2:]), expected)


@pytest.mark.parametrize("name", ["columns", "columns-all", "columns-one-column"])
def test_compact_input_gives_the_same_bits(name):
    case = CASES[name]
    grad_output, input = operands(case, 33)
    compact = input[:, case[3].long()]
    assert torch.equal(
        selected_wgrad_triton(grad_output, compact, *case[2:]),
        selected_wgrad_triton(grad_output, input, *case[2:]),
    )


@pytest.mark.parametrize("name", KINDS)
def test_no_tokens_is_zero(name):
    case = CASES[name]
    values = selected_wgrad_triton(*operands(case, 0), *case[2:])
    assert values.shape == places(*case)[0].shape and (values == 0).all()


@pytest.mark.parametrize("name", CASES)
def test_accumulates_in_place(name):
    case = CASES[name]
    grad_output, input = operands(case, 21)
    start = random(*places(*case)[0].shape)
    values_grad = start.clone()
    selected_wgrad_triton_(values_grad, grad_output, input, *case[2:])
    exact = start.double() + dense(grad_output, input, case, torch.float64)
    within_twice(values_grad, start + dense(grad_output, input, case, torch.float32), exact)


@pytest.mark.parametrize("name", KINDS)
def test_accumulates_into_sixteen_bits_with_one_rounding(name):
    case = CASES[name]
    grad_output, input = operands(case, 21, torch.bfloat16)
    start = random(*places(*case)[0].shape, dtype=torch.bfloat16)
    values_grad = torch.stack([start, start], -1)[..., 0]
    selected_wgrad_triton_(values_grad, grad_output, input, *case[2:])
    exact = start.double() + dense(grad_output, input, case, torch.float64)
    within_twice(values_grad, exact.bfloat16(), exact)


@pytest.mark.parametrize("name", ["rows-wide", "columns", "blocks-ragged", "blocks-odd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strips_serve_every_structure_that_has_a_row_and_a_column(name, dtype, monkeypatch):
    """Three rows at a time; padding is zero, and stays what it was where values are added."""
    case = CASES[name]
    monkeypatch.setattr(selected_wgrad_strips, "WORKSPACE", 3 * 4 * case[1])
    grad_output, input = operands(case, 21, dtype)
    inside = places(*case)[2]
    plain, exact = (
        dense(grad_output, input, case, wide) for wide in (torch.float32, torch.float64)
    )
    values = torch.empty(inside.shape, dtype=torch.float32, device=DEVICE)
    selected_wgrad_strips.wgrad_by_strips(values, grad_output, input, *case[2:], accumulate=False)
    within_twice(values, plain, exact)
    assert (values[~inside] == 0).all()
    start = random(*inside.shape)
    into = start.clone()
    selected_wgrad_strips.wgrad_by_strips(into, grad_output, input, *case[2:], accumulate=True)
    within_twice(into, start + plain, start + exact)
    assert torch.equal(into[~inside], start[~inside])


@pytest.mark.parametrize("name", KINDS)
def test_repeats_give_the_same_bits(name):
    case = CASES[name]
    grad_output, input = operands(case, 70)
    first = selected_wgrad_triton(grad_output, input, *case[2:])
    for _ in range(20 if DEVICE == "cuda" else 1):
        assert torch.equal(bits(selected_wgrad_triton(grad_output, input, *case[2:])), bits(first))


def test_token_offsets_past_two_to_the_31():
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # pages that nobody touches cost nothing
    )
    try:
        grad_output = torch.empty(3, 2**30 + 7, dtype=torch.float16, device=DEVICE)[:, :4]
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = True
    grad_output.copy_(random(3, 4))
    input = random(3, 5, dtype=torch.float16)
    for kind, index in (
        ("rows", [1, 3]),
        ("columns", [0, 4]),
        ("blocks", [[1, 1]]),
        ("entries", [4, 19]),
    ):
        index = torch.tensor(index, device=DEVICE)
        values = selected_wgrad_triton(grad_output, input, kind, index, 2, 2)
        assert torch.equal(
            values, selected_wgrad_triton(grad_output.contiguous(), input, kind, index, 2, 2)
        )


def test_entries_past_two_to_the_31():
    grad_output, input = random(2, 2**16 + 1), random(2, 2**16)
    index = torch.tensor([5, 2**31 + 7, 2**32 + 9], device=DEVICE)
    values = selected_wgrad_triton(grad_output, input, "entries", index, 1, 1)
    exact = (grad_output[:, index // 2**16].double() * input[:, index % 2**16].double()).sum(0)
    within_twice(values, exact.float(), exact)


def test_bad_input_is_named():
    x, index = torch.zeros(3, 4, device=DEVICE), torch.tensor([1], device=DEVICE)
    with pytest.raises(ValueError, match="input must have the 3 tokens of grad_output, got 2"):
        selected_wgrad_triton(x, x[:2], "rows", index, 1, 1)
    with pytest.raises(ValueError, match=r"grad_output must be \[tokens, features\], got \[4\]"):
        selected_wgrad_triton(x[0], x, "rows", index, 1, 1)
    with pytest.raises(TypeError, match="input must be float32.*int64"):
        selected_wgrad_triton(x, x.long(), "rows", index, 1, 1)
    with pytest.raises(ValueError, match=r"values_grad must be \[1, 4\], got \[3, 4\]"):
        selected_wgrad_triton_(x, x, x, "rows", index, 1, 1)
