"""selected_wgrad against the dense product in fp64, at most twice as far from it as plain PyTorch's
own product.
"""

import oracle
import pytest
import torch

from sparse_ft import ops
from sparse_ft.ops import strips as strips_of
from sparse_ft.ops._registry import reference

IMPLEMENTATIONS = {
    "op": (ops.selected_wgrad, ops.selected_wgrad_),
    "reference": (reference("selected_wgrad"), reference("selected_wgrad_")),
}
SHAPES = [(7, 5), (1, 9), (9, 1), (33, 70)]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return IMPLEMENTATIONS[request.param]


@pytest.fixture
def wgrad(implementation):
    return implementation[0]


@pytest.fixture
def wgrad_(implementation):
    return implementation[1]


def operands(tokens, shape, dtype=torch.float32, device="cpu"):
    return torch.randn(tokens, shape[0]).to(device, dtype), torch.randn(tokens, shape[1]).to(
        device, dtype
    )


def accumulator(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def check(got, grad_output, input, layout, dtype, base=None):
    """Against fp64; plain PyTorch is the dense product in the accumulator's dtype, rounded once to
    the result's.
    """
    grad_output, input = grad_output.cpu(), input.cpu()
    wide = accumulator(input.dtype)
    dense = grad_output.double().T @ input.double()
    plain = grad_output.to(wide).T @ input.to(wide)
    want, plain = oracle.gather(dense, layout), oracle.gather(plain, layout)
    if base is not None:
        want, plain = want + base.cpu().double(), plain + base.cpu()
    reach = (
        (grad_output.double().abs().T @ input.double().abs()).amax().item()
        if dense.numel()
        else 0.0
    )
    slack = (
        torch.finfo(wide).eps * reach
        + torch.finfo(dtype).eps * (want.abs().amax().item() if want.numel() else 0.0) / 2
    )
    assert got.dtype == dtype
    oracle.assert_as_good_as_plain(got, want, plain.to(dtype), slack)
    assert not got.cpu()[oracle.padding(layout, dense.shape)].any() or base is not None


@pytest.mark.parametrize("tokens", [0, 1, 33])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", oracle.KINDS)
def test_every_layout(wgrad, kind, shape, tokens, device):
    grad_output, input = operands(tokens, shape, device=device)
    for which in ("some", "last", "all", "empty"):
        for index_dtype in (torch.int32, torch.int64)[which == "all" :]:
            layout = oracle.layout(kind, shape, which, index_dtype, device=device)
            check(wgrad(grad_output, input, *layout), grad_output, input, layout, torch.float32)


@pytest.mark.parametrize(
    "to", [None, *oracle.DTYPES], ids=lambda dtype: dtype and oracle.name_of(dtype)
)
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=oracle.name_of)
def test_every_pair_of_dtypes(wgrad, dtype, to, device):
    for kind in oracle.KINDS:
        grad_output, input = operands(40, (17, 22), dtype, device)
        layout = oracle.layout(kind, (17, 22), block=(8, 8), device=device)
        check(
            wgrad(grad_output, input, *layout, dtype=to),
            grad_output,
            input,
            layout,
            to or accumulator(dtype),
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=oracle.name_of)
@pytest.mark.parametrize("kind", oracle.KINDS)
def test_16_bit_operands_are_summed_in_fp32(wgrad, kind, dtype, device):
    """4096 ones: a 16-bit accumulator stops at 256 (bf16) or 2048 (fp16).

    The reference of the house is fp32.
    """
    grad_output, input = (
        torch.ones(4096, 8, dtype=dtype, device=device),
        torch.ones(4096, 8, dtype=dtype, device=device),
    )
    layout = oracle.layout(kind, (8, 8), block=(4, 4), device=device)
    assert (wgrad(grad_output, input, *layout) == 4096).all()


@pytest.mark.parametrize("block", [(1, 1), (16, 16), (33, 70), (64, 64), (2, 70), (33, 3)], ids=str)
def test_block_sizes_up_to_more_than_the_matrix(wgrad, block, device):
    grad_output, input = operands(20, (33, 70), device=device)
    for which in ("some", "all"):
        layout = oracle.layout("blocks", (33, 70), which, block=block, device=device)
        check(wgrad(grad_output, input, *layout), grad_output, input, layout, torch.float32)


@pytest.mark.parametrize("kind", oracle.KINDS)
def test_memory_formats(wgrad, wgrad_, kind, device):
    shape, tokens = (17, 22), 30
    layout = oracle.layout(kind, shape, device=device)
    pairs = (oracle.matrices((tokens, size), torch.float32, device).values() for size in shape)
    for grad_output, input in zip(*pairs, strict=True):
        check(wgrad(grad_output, input, *layout), grad_output, input, layout, torch.float32)
        into = torch.randn(oracle.values_shape(*layout, shape), device=device)
        base = into.clone()
        wgrad_(into, grad_output, input, *layout)
        check(into, grad_output, input, layout, torch.float32, base)
    one = torch.randn(1, 22, device=device).expand(tokens, 22)
    check(wgrad(grad_output, one, *layout), grad_output, one, layout, torch.float32)
    ones = torch.ones((), device=device).expand(tokens, 17)  # what the gradient of a sum looks like
    check(wgrad(ones, input, *layout), ones, input, layout, torch.float32)


@pytest.mark.parametrize("tokens", [0, 1, 40])
def test_columns_of_an_input_that_holds_only_them(wgrad, wgrad_, tokens, device):
    grad_output, input = operands(tokens, (17, 22), device=device)
    layout = oracle.layout("columns", (17, 22), device=device)
    part = input[:, layout[1].long()]
    got = wgrad(grad_output, part, *layout)
    check(got, grad_output, input, layout, torch.float32)
    into = torch.ones_like(got)
    wgrad_(into, grad_output, part, *layout)
    check(into, grad_output, input, layout, torch.float32, torch.ones_like(got))


@pytest.mark.parametrize("to", oracle.DTYPES, ids=oracle.name_of)
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=oracle.name_of)
def test_accumulates_and_rounds_once(wgrad_, dtype, to, device):
    for kind in oracle.KINDS:
        grad_output, input = operands(40, (17, 22), dtype, device)
        layout = oracle.layout(kind, (17, 22), block=(8, 8), device=device)
        into = torch.randn(oracle.values_shape(*layout, (17, 22)), dtype=torch.float64).to(
            device, to
        )
        base = into.clone()
        wgrad_(into, grad_output, input, *layout)
        check(into, grad_output, input, layout, to, base)


def test_accumulates_into_a_strided_buffer(wgrad_, device):
    grad_output, input = operands(6, (7, 5), device=device)
    layout = oracle.layout("rows", (7, 5), device=device)
    whole = torch.zeros(2 * len(layout[1]), 5, device=device)
    wgrad_(whole[::2], grad_output, input, *layout)
    check(whole[::2], grad_output, input, layout, torch.float32)
    assert not whole[1::2].any()


def test_non_finite_operands_reach_only_what_they_touch(wgrad, device):
    grad_output, input = operands(5, (7, 5), device=device)
    grad_output[2, 3] = float("nan")
    for kind in ("rows", "columns", "entries"):
        layout = oracle.layout(kind, (7, 5), "all", device=device)
        dense = grad_output.cpu().T @ input.cpu()
        assert torch.equal(
            wgrad(grad_output, input, *layout).cpu().isnan(), oracle.gather(dense, layout).isnan()
        ), kind


def test_entries_of_a_gradient_past_2_to_the_31(wgrad, device):
    rows = columns = 46500
    grad_output, input = operands(2, (rows, columns), device=device)
    where = torch.tensor(
        [0, 46499, 46500, 2**31 - 1, 2**31, 2**31 + 5, rows * columns - 1], device=device
    )
    got = wgrad(grad_output, input, "entries", where, 1, 1)
    want = (grad_output[:, where // columns].double() * input[:, where % columns].double()).sum(0)
    assert torch.allclose(got.double(), want, rtol=1e-6, atol=1e-6)


def test_many_entries_over_several_strips(wgrad, monkeypatch):
    """The reference computes the dense gradient strip by strip.

    No strip may lose or shift an entry.
    """
    monkeypatch.setattr(strips_of, "STRIP", 100)
    grad_output, input = operands(9, (33, 70))
    for which in ("some", "all", "last"):
        layout = oracle.layout("entries", (33, 70), which)
        check(wgrad(grad_output, input, *layout), grad_output, input, layout, torch.float32)


@pytest.mark.parametrize("kind", oracle.KINDS)
def test_in_place_moves_the_version_of_its_result_only(kind, device):
    grad_output, input = operands(6, (7, 5), device=device)
    layout = oracle.layout(kind, (7, 5), device=device)
    into = torch.zeros(oracle.values_shape(*layout, (7, 5)), device=device)
    versions = into._version, grad_output._version, input._version, layout[1]._version
    ops.selected_wgrad_(into, grad_output, input, *layout)
    assert into._version > versions[0]
    assert (grad_output._version, input._version, layout[1]._version) == versions[1:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=oracle.name_of)
@pytest.mark.parametrize("kind", oracle.KINDS)
def test_threads_do_not_change_the_bits(kind, dtype):
    if ops.SERVED["selected_wgrad"]["cpu"][0] != "native":
        pytest.skip("plain PyTorch's products may depend on the thread count")
    grad_output, input = operands(70, (130, 258), dtype)
    layout, results = oracle.layout(kind, (130, 258), block=(16, 16)), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        into = torch.ones(oracle.values_shape(*layout, (130, 258)))
        ops.selected_wgrad_(into, grad_output, input, *layout)
        results.append((ops.selected_wgrad(grad_output, input, *layout), into))
    assert all(
        oracle.same_bits(a, b)
        for other in results[1:]
        for a, b in zip(results[0], other, strict=True)
    )


@pytest.mark.parametrize("variant", ["contiguous", "permuted", "sliced", "empty"])
@pytest.mark.parametrize("kind", oracle.KINDS)
def test_opcheck(kind, variant, device):
    form = "contiguous" if variant == "empty" else variant
    grad_output, input = (oracle.matrices((6, n), torch.float32, device)[form] for n in (7, 5))
    layout = oracle.layout(kind, (7, 5), "empty" if variant == "empty" else "some", device=device)
    into = torch.zeros(oracle.values_shape(*layout, (7, 5)), device=device)
    torch.library.opcheck(
        torch.ops.sparse_ft.selected_wgrad.default,
        (grad_output, input, *layout),
        {"dtype": torch.bfloat16},
    )
    torch.library.opcheck(
        torch.ops.sparse_ft.selected_wgrad_.default, (into, grad_output, input, *layout)
    )


def z(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype)


@pytest.mark.parametrize(
    "grad_output, input, kind, index, block, error, message",
    [
        (z(6), z(6, 5), "rows", [0], (1, 1), ValueError, r"grad_output: .*\(6,\)"),
        (z(6, 7), z(2, 6, 5), "rows", [0], (1, 1), ValueError, r"input: .*\(2, 6, 5\)"),
        (
            z(6, 7, dtype=torch.int64),
            z(6, 5),
            "rows",
            [0],
            (1, 1),
            ValueError,
            r"grad_output: .*torch.int64",
        ),
        (z(6, 7), z(4, 5), "rows", [0], (1, 1), ValueError, r"input: expected 6 tokens.*got 4"),
        (
            z(6, 7),
            z(6, 5, dtype=torch.float64),
            "rows",
            [0],
            (1, 1),
            TypeError,
            r"input: .*torch.float32.*torch.float64",
        ),
        (z(6, 7), z(6, 5), "diagonal", [0], (1, 1), ValueError, r"kind: .*'diagonal'"),
        (z(6, 7), z(6, 5), "blocks", [0], (2, 2), ValueError, r"index: .*\[n, 2\].*\(1,\)"),
        (z(6, 7), z(6, 5), "rows", [0.5], (1, 1), TypeError, r"index: .*torch.float32"),
        (z(6, 7), z(6, 5), "blocks", [[0, 0]], (-1, 2), ValueError, r"block_size: .*\(-1, 2\)"),
    ],
)
def test_errors_name_the_argument_and_change_nothing(
    wgrad, wgrad_, grad_output, input, kind, index, block, error, message
):
    into = torch.ones(1, 5)
    with pytest.raises(error, match=message):
        wgrad(grad_output, input, kind, torch.tensor(index), *block)
    with pytest.raises(error, match=message):
        wgrad_(into, grad_output, input, kind, torch.tensor(index), *block)
    assert into.eq(1).all()


@pytest.mark.parametrize(
    "into, error, message",
    [
        (torch.ones(1, 6), ValueError, r"values_grad: .*\(1, 5\).*\(1, 6\)"),
        (torch.ones(5), ValueError, r"values_grad: .*\(5,\)"),
        (torch.ones(1, 5, dtype=torch.int32), TypeError, r"values_grad: .*torch.int32"),
    ],
)
def test_errors_of_the_buffer(wgrad_, into, error, message):
    with pytest.raises(error, match=message):
        wgrad_(into, z(6, 7), z(6, 5), "rows", torch.tensor([0]), 1, 1)
    assert into.eq(1).all()


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("strip", [100, 1 << 20])
def test_many_entries_go_by_strips_of_rows(accumulate, strip, monkeypatch):
    """Above half of the matrix the op takes strips of the dense product.

    Same values, same bits on any threads.
    """
    monkeypatch.setattr(strips_of, "STRIP", strip)
    tokens = 50
    index = torch.rand(37 * 29).topk(37 * 29 * 3 // 4).indices.sort().values.to(torch.int32)
    grad_output, input = torch.randn(tokens, 37), torch.randn(tokens, 29)
    want = (grad_output.double().T @ input.double()).reshape(-1)[index.long()]
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        if accumulate:
            values = torch.ones(len(index))
            ops.selected_wgrad_(values, grad_output, input, "entries", index)
            found.append(values - 1)
        else:
            found.append(ops.selected_wgrad(grad_output, input, "entries", index))
    torch.testing.assert_close(found[0].double(), want, atol=1e-5, rtol=1e-5)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=oracle.name_of)
def test_strips_keep_the_last_entry_below_2_to_the_31(dtype):
    """The end of the last strip, 2**31, is no int32."""
    rows, columns = 1 << 16, 1 << 15
    index = torch.tensor([0, columns - 1, columns * 64, 2**31 - 1], dtype=dtype)
    found = [
        (rows.start, rows.stop, some.start, some.stop)
        for rows, some in strips_of.strips(index, rows, columns)
    ]
    assert found == [(0, 64, 0, 2), (64, 128, 2, 3), (rows - 64, rows, 3, 4)]
