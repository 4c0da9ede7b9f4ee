import pytest
import torch
from oracle import CASES, DEVICE, bits, gather, places, random, selected_mask, transposed
from sparse_ft.kernels.scatter_selected import scatter_selected_triton_, swap_selected_triton_

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def padded_with_nan(case, dtype=torch.float32):
    """Random values whose padding must not be looked at."""
    _, _, inside = places(*case)
    values = random(*inside.shape, dtype=dtype)
    return values.masked_fill(~inside, float("nan")), inside


def guarded(matrix):
    """The matrix inside a larger buffer, to see writes past its ends."""
    buffer = torch.full((matrix.numel() + 64,), 3.0, dtype=matrix.dtype, device=DEVICE)
    inner = buffer[32:-32].view_as(matrix)
    inner.copy_(matrix)
    return inner, buffer


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("accumulate", [False, True])
def test_selected_entries_change_and_no_other_bit(name, accumulate):
    case = CASES[name]
    before = random(*case[:2])
    before[~selected_mask(case)] = float("nan")
    values, inside = padded_with_nan(case)
    matrix, buffer = guarded(before)
    scatter_selected_triton_(matrix, values, *case[2:], accumulate=accumulate)
    expected = gather(before, case) + values if accumulate else values
    assert torch.equal(gather(matrix, case)[inside], expected[inside])
    untouched = ~selected_mask(case)
    assert torch.equal(bits(matrix)[untouched], bits(before)[untouched])
    assert (buffer[:32] == 3).all() and (buffer[-32:] == 3).all()


@pytest.mark.parametrize("name", ["rows", "columns", "blocks-ragged", "blocks-odd", "entries"])
def test_strided_matrix_and_values(name):
    case = CASES[name]
    before = random(*case[:2])
    values, inside = padded_with_nan(case)
    matrix, spread = transposed(before), torch.stack([values, values], -1)[..., 0]
    scatter_selected_triton_(matrix, spread, *case[2:])
    assert torch.equal(gather(matrix, case)[inside], values[inside])
    swap_selected_triton_(matrix, spread.copy_(gather(before, case)), *case[2:])
    assert torch.equal(matrix, before) and torch.equal(spread[inside], values[inside])


@pytest.mark.parametrize("name", ["columns", "blocks-ragged"])
@pytest.mark.parametrize("matrix_dtype", DTYPES)
@pytest.mark.parametrize("values_dtype", DTYPES)
@pytest.mark.parametrize("accumulate", [False, True])
def test_every_mix_of_dtypes_rounds_once(name, matrix_dtype, values_dtype, accumulate):
    case = CASES[name]
    matrix = random(*case[:2], dtype=matrix_dtype)
    values, inside = padded_with_nan(case, values_dtype)
    wide = torch.promote_types(torch.promote_types(matrix_dtype, values_dtype), torch.float32)
    expected = gather(matrix, case).to(wide) + values.to(wide) if accumulate else values
    scatter_selected_triton_(matrix, values, *case[2:], accumulate=accumulate)
    assert torch.equal(bits(gather(matrix, case))[inside], bits(expected.to(matrix_dtype))[inside])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swapping_twice_restores_every_bit(name, dtype):
    case = CASES[name]
    before = random(*case[:2], dtype=dtype)
    values, inside = padded_with_nan(case, dtype)
    matrix, swapped = before.clone(), values.clone()
    swap_selected_triton_(matrix, swapped, *case[2:])
    assert torch.equal(bits(swapped)[inside], bits(gather(before, case))[inside])
    assert torch.equal(bits(gather(matrix, case))[inside], bits(values)[inside])
    swap_selected_triton_(matrix, swapped, *case[2:])
    assert torch.equal(bits(matrix), bits(before)) and torch.equal(bits(swapped), bits(values))


def test_bad_input_is_named():
    matrix, index = torch.zeros(3, 3, device=DEVICE), torch.tensor([1], device=DEVICE)
    with pytest.raises(ValueError, match=r"values must be \[1, 3\], got \[1, 2\]"):
        scatter_selected_triton_(matrix, matrix[:1, :2], "rows", index, 1, 1)
    with pytest.raises(
        TypeError, match="values must have the matrix's dtype torch.float32.*bfloat16"
    ):
        swap_selected_triton_(matrix, matrix[:1].bfloat16(), "rows", index, 1, 1)
    with pytest.raises(TypeError, match="values must be float32.*int64"):
        scatter_selected_triton_(matrix, matrix[:1].long(), "rows", index, 1, 1)
