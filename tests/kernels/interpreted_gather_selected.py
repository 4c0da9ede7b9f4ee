import pytest
import torch
from oracle import CASES, DEVICE, bits, gather, random, selected_mask, transposed
from sparse_ft.kernels.gather_selected import gather_selected_triton

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("store", [torch.Tensor.contiguous, transposed])
def test_values_and_only_selected_entries_are_read(name, store):
    case = CASES[name]
    matrix = random(*case[:2])
    matrix[~selected_mask(case)] = float("nan")
    values = gather_selected_triton(store(matrix), *case[2:])
    assert torch.equal(bits(values), bits(gather(matrix, case)))


@pytest.mark.parametrize("name", ["columns", "blocks-ragged"])
@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_every_mix_of_dtypes_rounds_as_torch_does(name, source, target):
    case = CASES[name]
    matrix = random(*case[:2], dtype=torch.float64).to(source)
    half_way = 1 + 2**-11 + 2**-40  # rounded to float16 at once it would go up
    matrix[0, :4] = torch.tensor([float("inf"), -0.0, float("nan"), half_way], dtype=torch.float64)
    values = gather_selected_triton(matrix, *case[2:], dtype=target)
    expected = gather(matrix, case).to(target)
    assert values.dtype == target
    torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(values.signbit() & (values == 0), expected.signbit() & (expected == 0))


def test_positions_past_two_to_the_31():
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # pages that nobody touches cost nothing
    )
    try:
        matrix = torch.empty(3, 2**30 + 7, dtype=torch.float16, device=DEVICE)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = True
    columns = matrix.size(1)
    matrix[2, 5], matrix[2, columns - 1] = 3, 7
    index = torch.tensor([2 * columns + 5, 3 * columns - 1], device=DEVICE)
    assert gather_selected_triton(matrix, "entries", index, 1, 1).tolist() == [3, 7]
    block = torch.tensor([[2, columns // 2]], dtype=torch.int32, device=DEVICE)
    assert gather_selected_triton(matrix, "blocks", block, 1, 2).flatten().tolist() == [7, 0]
    last = torch.tensor([columns - 1], dtype=torch.int32, device=DEVICE)
    assert gather_selected_triton(matrix, "columns", last, 1, 1)[2].item() == 7


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"kind": "tiles"}, ValueError, "kind.*'tiles'"),
        ({"index": torch.zeros(2, 2, dtype=torch.long)}, ValueError, r"index.*\[2, 2\]"),
        ({"index": torch.zeros(2)}, TypeError, "index.*float32"),
        ({"matrix": torch.zeros(3)}, ValueError, r"matrix.*\[3\]"),
        ({"matrix": torch.zeros(3, 3, dtype=torch.int32)}, TypeError, "matrix.*int32"),
        ({"dtype": torch.int32}, TypeError, "dtype.*int32"),
        (
            {"kind": "blocks", "index": torch.zeros(1, 2, dtype=torch.long), "block_w": 0},
            ValueError,
            "block_w.*0",
        ),
    ],
)
def test_bad_input_is_named(change, error, message):
    call = dict(
        matrix=torch.zeros(3, 3), kind="rows", index=torch.tensor([1]), block_h=1, block_w=1
    )
    call = {
        name: x.to(DEVICE) if torch.is_tensor(x) else x for name, x in {**call, **change}.items()
    }
    with pytest.raises(error, match=message):
        gather_selected_triton(**call)
