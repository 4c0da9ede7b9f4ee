"""gather_selected against the oracle.

A copy, so exact, for every layout, memory format and pair of dtypes.
"""

import oracle
import pytest
import torch

from sparse_ft import ops
from sparse_ft.ops._registry import reference

SHAPES = [(7, 5), (1, 9), (9, 1), (33, 70)]
IMPLEMENTATIONS = {"op": ops.gather_selected, "reference": reference("gather_selected")}


@pytest.fixture(params=IMPLEMENTATIONS)
def gather(request):
    return IMPLEMENTATIONS[request.param]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("which", ["some", "last", "all", "empty"])
@pytest.mark.parametrize("kind", oracle.KINDS)
def test_every_layout_and_memory_format(gather, kind, which, shape, device):
    for name, matrix in oracle.matrices(shape, torch.float32, device).items():
        for index_dtype in (torch.int32, torch.int64):
            layout = oracle.layout(kind, shape, which, index_dtype, device=device)
            assert oracle.same_bits(gather(matrix, *layout), oracle.gather(matrix, layout)), (
                name,
                index_dtype,
            )


@pytest.mark.parametrize("to", oracle.DTYPES, ids=oracle.name_of)
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=oracle.name_of)
def test_every_pair_of_dtypes(gather, dtype, to, device):
    matrix = torch.randn(7, 10, dtype=torch.float64).mul(3).to(device, dtype)
    for kind in oracle.KINDS:
        layout = oracle.layout(kind, matrix.shape, device=device)
        assert oracle.same_bits(
            gather(matrix, *layout, dtype=to), oracle.gather(matrix.to(to), layout)
        ), kind
        assert gather(matrix, *layout).dtype == dtype


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("kind", oracle.KINDS)
def test_matrix_without_entries(gather, kind, shape, device):
    matrix = torch.empty(shape, device=device)
    for which in ("empty", "all"):
        layout = oracle.layout(kind, shape, which, device=device)
        assert gather(matrix, *layout).shape == oracle.values_shape(*layout, shape)


@pytest.mark.parametrize("block", [(1, 1), (7, 5), (16, 16), (2, 5), (64, 1)], ids=str)
def test_block_sizes_up_to_more_than_the_matrix(gather, block, device):
    matrix = torch.randn(7, 5, device=device)
    layout = oracle.layout("blocks", matrix.shape, "all", block=block, device=device)
    assert oracle.same_bits(gather(matrix, *layout), oracle.gather(matrix, layout))


def test_padding_is_zero_where_the_matrix_is_not_finite(gather, device):
    matrix = torch.full((3, 3), float("nan"), device=device)
    values = gather(matrix, "blocks", torch.tensor([[1, 1]], device=device), 2, 2)
    assert values[0, 0, 0].isnan() and values.isnan().sum() == 1 and values.nansum() == 0


def test_expanded_matrix_and_strided_index(gather, device):
    matrix = torch.randn(1, 6, device=device).expand(8, 6)
    index = torch.arange(10, dtype=torch.int32, device=device)[1:8:3]
    assert torch.equal(gather(matrix, "rows", index, 1, 1), matrix[index.long()])
    assert torch.equal(
        gather(matrix.contiguous(), "entries", index, 1, 1), matrix.reshape(-1)[index.long()]
    )


def test_positions_past_2_to_the_31(gather, tmp_path):
    shape = 46500, 46500  # a file of holes: nothing of it is in memory but what is touched
    matrix = torch.from_file(
        str(tmp_path / "m"), shared=True, size=shape[0] * shape[1], dtype=torch.float16
    ).view(shape)
    matrix[46499, 46490:] = torch.arange(10).half() + 1
    far = torch.arange(46490, 46500) + 46499 * shape[1]
    assert torch.equal(gather(matrix, "entries", far, 1, 1), torch.arange(10).half() + 1)
    assert gather(matrix, "rows", torch.tensor([46499], dtype=torch.int32), 1, 1).sum() == 55
    blocks = gather(
        matrix, "blocks", torch.tensor([[46499 // 8, 46496 // 8]], dtype=torch.int32), 8, 8
    )
    assert torch.equal(blocks[0, 46499 % 8], torch.tensor([7.0, 8, 9, 10, 0, 0, 0, 0]).half())


@pytest.mark.parametrize("variant", ["contiguous", "permuted", "sliced", "empty"])
@pytest.mark.parametrize("kind", oracle.KINDS)
def test_opcheck(kind, variant, device):
    matrix = oracle.matrices((7, 5), torch.float32, device)[
        "contiguous" if variant == "empty" else variant
    ]
    layout = oracle.layout(kind, (7, 5), "empty" if variant == "empty" else "some", device=device)
    torch.library.opcheck(
        torch.ops.sparse_ft.gather_selected.default, (matrix, *layout), {"dtype": torch.float64}
    )


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((torch.zeros(4), "rows", [0], 1, 1), ValueError, r"matrix: .*\(4,\)"),
        (
            (torch.zeros(4, 4, dtype=torch.int32), "rows", [0], 1, 1),
            TypeError,
            r"matrix: .*torch.int32",
        ),
        ((torch.zeros(4, 4), "diagonal", [0], 1, 1), ValueError, r"kind: .*'diagonal'"),
        ((torch.zeros(4, 4), "rows", [[0, 1]], 1, 1), ValueError, r"index: .*\(1, 2\)"),
        ((torch.zeros(4, 4), "columns", [0.5], 1, 1), TypeError, r"index: .*torch.float32"),
        ((torch.zeros(4, 4), "blocks", [[0, 1]], 2, 0), ValueError, r"block_size: .*\(2, 0\)"),
    ],
)
def test_errors_name_the_argument_and_its_value(gather, arguments, error, message):
    matrix, kind, index, *block = arguments
    with pytest.raises(error, match=message):
        gather(matrix, kind, torch.tensor(index), *block)
