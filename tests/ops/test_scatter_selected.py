"""scatter_selected_ and swap_selected_ against the oracle.

Each selected entry written, no other touched by one bit.
"""

import oracle
import pytest
import torch

from sparse_ft import ops
from sparse_ft.ops._registry import reference

SHAPES = [(7, 5), (1, 9), (9, 1), (33, 70)]
IMPLEMENTATIONS = {
    "op": (ops.scatter_selected_, ops.swap_selected_),
    "reference": (reference("scatter_selected_"), reference("swap_selected_")),
}


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return IMPLEMENTATIONS[request.param]


@pytest.fixture
def scatter_(implementation):
    return implementation[0]


@pytest.fixture
def swap_(implementation):
    return implementation[1]


def values_for(layout, shape, dtype, device):
    return (
        torch.randn(oracle.values_shape(*layout, shape), dtype=torch.float64)
        .mul(3)
        .to(device, dtype)
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("which", ["some", "last", "all", "empty"])
@pytest.mark.parametrize("kind", oracle.KINDS)
def test_copy_into_every_memory_format(scatter_, kind, which, shape, device):
    for name, matrix in oracle.matrices(shape, torch.float32, device).items():
        for index_dtype in (torch.int32, torch.int64):
            layout = oracle.layout(kind, shape, which, index_dtype, device=device)
            values, before = values_for(layout, shape, torch.float32, device), matrix.cpu().clone()
            scatter_(matrix, values, *layout)
            want = torch.where(
                oracle.mask(layout, shape), oracle.spread(values, layout, shape), before
            )
            assert oracle.same_bits(matrix, want), (name, index_dtype)


def test_memory_around_a_sliced_matrix_is_untouched(scatter_, device):
    whole = torch.randn(9, 11, device=device)
    before, part = whole.clone(), whole[2:8, 3:9]
    layout = oracle.layout("blocks", part.shape, "all", block=(4, 4), device=device)
    scatter_(part, torch.ones(oracle.values_shape(*layout, part.shape), device=device), *layout)
    before[2:8, 3:9] = 1
    assert torch.equal(whole, before)


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=oracle.name_of)
@pytest.mark.parametrize("values_dtype", oracle.DTYPES, ids=oracle.name_of)
def test_copy_of_every_pair_of_dtypes_rounds_like_pytorch(scatter_, dtype, values_dtype, device):
    for kind in oracle.KINDS:
        matrix = torch.randn(7, 10, dtype=torch.float64).to(device, dtype)
        layout = oracle.layout(kind, matrix.shape, device=device)
        values, before = (
            values_for(layout, matrix.shape, values_dtype, device),
            matrix.cpu().clone(),
        )
        scatter_(matrix, values, *layout)
        new = oracle.spread(values.to(dtype), layout, matrix.shape)
        assert oracle.same_bits(
            matrix, torch.where(oracle.mask(layout, matrix.shape), new, before)
        ), kind


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=oracle.name_of)
def test_copy_rounds_ties_to_even_and_keeps_what_is_not_finite(scatter_, dtype, device):
    ulp = torch.finfo(dtype).eps
    special = torch.tensor(
        [
            1 + ulp / 2,
            1 + 3 * ulp / 2,
            -1 - ulp / 2,
            3.4e38,
            -3.4e38,
            float("inf"),
            float("-inf"),
            float("nan"),
            -0.0,
            1e-7,
            6e-8,
            -3e-8,
            2e-40,
        ],
        device=device,
    )
    matrix = torch.zeros(1, len(special), dtype=dtype, device=device)
    scatter_(matrix, special[None], "rows", torch.tensor([0], device=device), 1, 1)
    want = special.to(dtype)
    nan = want.isnan()
    assert torch.equal(matrix[0].isnan(), nan) and oracle.same_bits(matrix[0][~nan], want[~nan])


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=oracle.name_of)
@pytest.mark.parametrize("values_dtype", oracle.DTYPES, ids=oracle.name_of)
def test_add_rounds_once(scatter_, dtype, values_dtype, device):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for kind in oracle.KINDS:
        matrix = torch.randn(7, 10, dtype=torch.float64).to(device, dtype)
        layout = oracle.layout(kind, matrix.shape, device=device)
        values, before = (
            values_for(layout, matrix.shape, values_dtype, device),
            matrix.cpu().clone(),
        )
        scatter_(matrix, values, *layout, accumulate=True)
        selected, new = (
            oracle.mask(layout, matrix.shape),
            oracle.spread(values, layout, matrix.shape),
        )
        plain = (before.to(wide) + new.to(wide)).to(dtype)
        want = before.double() + new.double()
        assert oracle.same_bits(matrix.cpu()[~selected], before[~selected]), kind
        # fp64 values may be added in fp64 or cast first
        if values_dtype != torch.float64 or dtype == torch.float64:
            assert oracle.same_bits(matrix.cpu()[selected], plain[selected]), kind
        oracle.assert_as_good_as_plain(matrix.cpu()[selected], want[selected], plain[selected], 0)


def test_padding_is_ignored(scatter_, swap_, device):
    matrix, values = (
        torch.zeros(3, 3, device=device),
        torch.full((1, 2, 2), float("nan"), device=device),
    )
    values[0, 0, 0] = 5
    index = torch.tensor([[1, 1]], device=device)
    scatter_(matrix, values, "blocks", index, 2, 2)
    scatter_(matrix, values, "blocks", index, 2, 2, accumulate=True)
    assert matrix[2, 2] == 10 and matrix.sum() == 10
    before = values.clone()
    swap_(matrix, values, "blocks", index, 2, 2)
    assert (
        values[0, 0, 0] == 10
        and oracle.same_bits(values.view(-1)[1:], before.view(-1)[1:])
        and matrix.sum() == 5
    )


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=oracle.name_of)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", oracle.KINDS)
def test_swap_exchanges_and_twice_restores_every_bit(swap_, kind, shape, dtype, device):
    generator = torch.Generator().manual_seed(1)
    for which in ("some", "all", "empty"):
        for name in ("contiguous", "permuted", "sliced", "strided"):
            matrix = oracle.matrices(shape, dtype, device)[name]
            layout = oracle.layout(kind, shape, which, device=device)
            kept = oracle.BITS[dtype]
            noise = torch.randint(
                torch.iinfo(kept).min,
                torch.iinfo(kept).max,
                matrix.shape,
                dtype=kept,
                generator=generator,
            )
            matrix.copy_(noise.view(dtype))  # any bits at all: NaN payloads, denormals
            values = values_for(layout, shape, dtype, device)
            first_matrix, first_values = matrix.clone(), values.clone()
            swap_(matrix, values, *layout)
            real = ~oracle.padding(layout, shape)
            assert oracle.same_bits(values.cpu()[real], oracle.gather(first_matrix, layout)[real])
            chosen = oracle.mask(layout, shape)
            assert oracle.same_bits(matrix.cpu()[~chosen], first_matrix.cpu()[~chosen])
            assert oracle.same_bits(
                matrix.cpu()[chosen], oracle.spread(first_values, layout, shape)[chosen]
            )
            swap_(matrix, values, *layout)
            assert oracle.same_bits(matrix, first_matrix) and oracle.same_bits(
                values, first_values
            ), (which, name)


def test_swap_with_strided_values(swap_, device):
    matrix, values = (
        torch.arange(12.0, device=device).view(3, 4),
        -torch.arange(6.0, device=device).view(3, 2).T.contiguous().T,
    )
    swap_(matrix, values, "columns", torch.tensor([1, 3], device=device), 1, 1)
    assert values.tolist() == [[1, 3], [5, 7], [9, 11]] and matrix[:, 1].tolist() == [0, -2, -4]


def test_copy_with_strided_and_expanded_values_and_strided_index(scatter_, device):
    matrix = torch.zeros(4, 6, device=device)
    index = torch.arange(4, dtype=torch.int64, device=device)[::3]
    scatter_(matrix, torch.arange(6.0, device=device).expand(2, 6), "rows", index, 1, 1)
    assert (
        torch.equal(matrix[[0, 3]].cpu(), torch.arange(6.0).expand(2, 6)) and not matrix[1:3].any()
    )
    scatter_(matrix, torch.arange(12.0, device=device).view(6, 2).T, "rows", index, 1, 1)
    assert torch.equal(matrix[[0, 3]].cpu(), torch.arange(12.0).view(6, 2).T)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)], ids=str)
@pytest.mark.parametrize("kind", oracle.KINDS)
def test_matrix_without_entries(scatter_, swap_, kind, shape, device):
    layout = oracle.layout(kind, shape, "all", device=device)
    matrix, values = (
        torch.empty(shape, device=device),
        torch.empty(oracle.values_shape(*layout, shape), device=device),
    )
    scatter_(matrix, values, *layout)
    swap_(matrix, values, *layout)


def test_positions_past_2_to_the_31(scatter_, swap_, tmp_path):
    shape = 46500, 46500
    matrix = torch.from_file(
        str(tmp_path / "m"), shared=True, size=shape[0] * shape[1], dtype=torch.float16
    ).view(shape)
    far = torch.arange(46490, 46500) + 46499 * shape[1]
    scatter_(matrix, torch.arange(10.0), "entries", far, 1, 1)
    assert torch.equal(matrix[46499, 46490:], torch.arange(10).half()) and not matrix[0].any()
    values = torch.ones(1, 8, 8).half()
    swap_(
        matrix, values, "blocks", torch.tensor([[46499 // 8, 46496 // 8]], dtype=torch.int32), 8, 8
    )
    assert (
        values[0, 46499 % 8].tolist() == [6, 7, 8, 9, 1, 1, 1, 1]
        and matrix[46499, 46496:].tolist() == [1] * 4
    )


@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
@pytest.mark.parametrize("name", ["scatter", "add", "swap"])
def test_version_moves_and_autograd_notices(name, strided, device):
    matrix = (
        torch.zeros(6, 6, device=device)[:, ::2] if strided else torch.zeros(6, 3, device=device)
    )
    values, index = torch.ones(1, 3, device=device), torch.tensor([2], device=device)
    call = {
        "scatter": lambda: ops.scatter_selected_(matrix, values, "rows", index),
        "add": lambda: ops.scatter_selected_(matrix, values, "rows", index, accumulate=True),
        "swap": lambda: ops.swap_selected_(matrix, values, "rows", index),
    }[name]
    x = torch.ones(6, 3, device=device, requires_grad=True)
    product, versions = (x * matrix).sum(), (matrix._version, values._version, index._version)
    call()
    assert matrix._version > versions[0] and index._version == versions[2]
    assert (values._version > versions[1]) == (name == "swap")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_inference_tensors(scatter_):
    with torch.inference_mode():
        matrix = torch.zeros(3, 2)
        scatter_(matrix, torch.ones(1, 2), "rows", torch.tensor([1]), 1, 1)
    assert matrix.sum() == 2


@pytest.mark.parametrize("kind", oracle.KINDS)
def test_threads_do_not_change_the_bits(scatter_, swap_, kind):
    shape, results = (129, 259), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        layout = oracle.layout(kind, shape, block=(16, 8))
        torch.manual_seed(3)
        matrix = torch.randn(shape).bfloat16()
        values = torch.randn(ops.gather_selected(matrix, *layout).shape)
        scatter_(matrix, values, *layout, accumulate=True)
        swapped = values.bfloat16()
        swap_(matrix, swapped, *layout)
        results.append((matrix, swapped))
    assert all(
        oracle.same_bits(a, b)
        for other in results[1:]
        for a, b in zip(results[0], other, strict=True)
    )


@pytest.mark.parametrize("variant", ["contiguous", "permuted", "sliced", "empty"])
@pytest.mark.parametrize("kind", oracle.KINDS)
def test_opcheck(kind, variant, device):
    matrix = oracle.matrices((7, 5), torch.float32, device)[
        "contiguous" if variant == "empty" else variant
    ]
    layout = oracle.layout(kind, (7, 5), "empty" if variant == "empty" else "some", device=device)
    values = values_for(layout, (7, 5), torch.float32, device)
    torch.library.opcheck(
        torch.ops.sparse_ft.scatter_selected_.default,
        (matrix, values, *layout),
        {"accumulate": variant == "sliced"},
    )
    torch.library.opcheck(torch.ops.sparse_ft.swap_selected_.default, (matrix, values, *layout))


BAD = [
    (torch.zeros(4), torch.zeros(1, 4), "rows", [0], (1, 1), ValueError, r"matrix: .*\(4,\)"),
    (
        torch.zeros(4, 4, dtype=torch.int32),
        torch.zeros(1, 4),
        "rows",
        [0],
        (1, 1),
        TypeError,
        r"matrix: .*torch.int32",
    ),
    (
        torch.zeros(4, 4),
        torch.zeros(1, 4),
        "diagonal",
        [0],
        (1, 1),
        ValueError,
        r"kind: .*'diagonal'",
    ),
    (
        torch.zeros(4, 4),
        torch.zeros(1, 4),
        "rows",
        [0.5],
        (1, 1),
        TypeError,
        r"index: .*torch.float32",
    ),
    (
        torch.zeros(4, 4),
        torch.zeros(4),
        "rows",
        [0],
        (1, 1),
        ValueError,
        r"values: .*\(1, 4\).*\(4,\)",
    ),
    (
        torch.zeros(4, 4),
        torch.zeros(4, 1),
        "rows",
        [0],
        (1, 1),
        ValueError,
        r"values: .*\(1, 4\).*\(4, 1\)",
    ),
    (
        torch.zeros(4, 4),
        torch.zeros(2, 2),
        "blocks",
        [[0, 0]],
        (2, 2),
        ValueError,
        r"values: .*\(1, 2, 2\).*\(2, 2\)",
    ),
    (
        torch.zeros(4, 4),
        torch.zeros(1, 2, 0),
        "blocks",
        [[0, 0]],
        (2, 0),
        ValueError,
        r"block_size: .*\(2, 0\)",
    ),
]


@pytest.mark.parametrize("matrix, values, kind, index, block, error, message", BAD)
def test_errors_name_the_argument_and_change_nothing(
    scatter_, swap_, matrix, values, kind, index, block, error, message
):
    for call in (scatter_, swap_):
        before, version = (matrix.clone(), values.clone()), matrix._version
        with pytest.raises(error, match=message):
            call(matrix, values + 1, kind, torch.tensor(index), *block)
        assert torch.equal(matrix, before[0]) and matrix._version == version


@pytest.mark.parametrize(
    "values",
    [torch.ones(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.complex64)],
    ids=["int64", "complex"],
)
def test_values_that_are_not_floating_point_are_refused(scatter_, values):
    matrix = torch.zeros(4, 4)
    with pytest.raises(TypeError, match=rf"values: .*{values.dtype}"):
        scatter_(matrix, values, "rows", torch.tensor([0]), 1, 1)
    assert not matrix.any()


def test_swap_refuses_two_dtypes(swap_):
    matrix, values = torch.zeros(4, 4), torch.ones(1, 4, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"values: .*torch.float64.*torch.float32"):
        swap_(matrix, values, "rows", torch.tensor([0]), 1, 1)
    assert not matrix.any() and values.all()
