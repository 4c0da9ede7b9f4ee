"""What the library's products are given at the widths of real models: every operand starts on 16
bytes, token by token, and no strip is a remainder of a few rows.

A GEMM whose operands do not takes its slow path on every GPU, and one of 2 rows costs as much as
one of 64.
"""

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from sparse_ft.kernels import selected_wgrad_entries, selected_wgrad_gemm  # noqa: E402
from sparse_ft.salience.units import Structure  # noqa: E402

# (out, in) of the layers of a block: attention's q, k, v, o, then the MLP's gate, up, down.
LAYERS = {
    "Llama-1B": [(2048, 2048), (512, 2048), (8192, 2048), (2048, 8192)],
    "Llama-3B": [(3072, 3072), (1024, 3072), (8192, 3072), (3072, 8192)],
    "Llama-8B": [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)],
    "Qwen3-0.6B": [(2048, 1024), (1024, 1024), (1024, 2048), (3072, 1024), (1024, 3072)],
    "Qwen3-4B": [(4096, 2560), (1024, 2560), (2560, 4096), (9728, 2560), (2560, 9728)],
    "Gemma-2B": [(2048, 2304), (1024, 2304), (2304, 2048), (9216, 2304), (2304, 9216)],
}
SHAPES = sorted({shape for layers in LAYERS.values() for shape in layers})
DENSITIES = 0.001, 0.01, 0.03, 0.05, 0.1, 0.25
TOKENS = 2


def test_these_are_the_shapes_of_26_layers():
    assert len(SHAPES) >= 26


@pytest.fixture
def products(monkeypatch):
    """[(grad_output, input)] of the products that follow, which are not computed."""
    found = []

    def product(grad_output, input):
        found.append((grad_output, input))
        return torch.empty(grad_output.size(1), input.size(1), device="meta")

    def gather(matrix, kind, index, *block, out=None, dtype=None):
        if kind == "blocks":  # of a strip
            return torch.empty(len(index), *block, device="meta")
        return matrix.index_select(1, index.long())

    class Launch:
        def __getitem__(self, grid):
            return lambda *arguments, **options: None

    for module in (selected_wgrad_entries, selected_wgrad_gemm):
        monkeypatch.setattr(module, "product", product)
    monkeypatch.setattr(selected_wgrad_entries, "_take_kernel", Launch())
    monkeypatch.setattr(selected_wgrad_gemm, "gather_selected_triton", gather)
    return found


def operands(shape, dtype=torch.bfloat16):
    return [torch.empty(TOKENS, size, dtype=dtype) for size in shape]


def check(products, rows):
    """rows: [first rows] of the strips, whose last one must not be a remainder."""
    assert products
    for pair in products:
        for operand in pair:
            assert operand.data_ptr() % 16 == 0
            assert operand.stride(0) * operand.element_size() % 16 == 0
            assert operand.stride(1) == 1 and operand.size(1) % 8 == 0
    assert all(left.size(1) >= 64 for left, _ in products) or not rows
    products.clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_strips_of_entries_and_blocks(dtype, products):
    """Of an entry in every row, and of blocks of 16 and of 64 in every block row."""
    for shape in SHAPES:
        given = operands(shape, dtype)
        index = torch.arange(0, shape[0] * shape[1], shape[1])
        values = torch.empty(len(index))
        selected_wgrad_entries.by_strips(values, *given, index, False)
        check(products, rows=True)
        for block in (16, 64):
            index = torch.cartesian_prod(torch.arange(shape[0] // block), torch.arange(1))
            values = torch.empty(len(index), block, block, device="meta")
            selected_wgrad_gemm.blocks_by_strips(values, *given, index, block, block, True)
            check(products, rows=True)


def test_a_share_of_rows_and_columns(products):
    """Of the counts that `sft.select` takes, gathered here or by the forward."""
    for shape in SHAPES:
        grad_output, input = operands(shape)
        for density in DENSITIES:
            for kind in ("rows", "columns"):
                count = Structure(kind).share(shape, density)
                index = torch.arange(count)
                if kind == "rows":
                    selected_wgrad_gemm.wgrad_of_rows(grad_output, input, index)
                else:
                    selected_wgrad_gemm.wgrad_of_columns(grad_output, input, index)
                    kept = input[:, :count].contiguous()
                    selected_wgrad_gemm.wgrad_of_columns(grad_output, kept, index)
                if count >= 8:
                    check(products, rows=False)
                products.clear()


def starts(operand):
    return operand.data_ptr() % 16, operand.stride(0) * operand.element_size() % 16


def test_numbers_that_were_given_are_padded(products):
    """41 of 4096: their tokens lie 48 apart, and 41 are multiplied."""
    grad_output, input = (torch.randn(TOKENS, 4096).bfloat16() for _ in range(2))
    index = torch.arange(0, 4096, 100)
    assert len(index) == 41
    selected_wgrad_gemm.wgrad_of_rows(grad_output, input, index)
    selected_wgrad_gemm.wgrad_of_columns(grad_output, input, index)
    selected_wgrad_gemm.wgrad_of_columns(grad_output, input[:, index], index)
    (rows, _), (_, columns), (_, kept) = products
    for found, source in ((rows, grad_output), (columns, input), (kept, input)):
        assert starts(found) == (0, 0) and torch.equal(found, source[:, index])


def test_what_is_not_aligned_is_seen(products):
    """The check can fail, for the reason that it is there for."""
    grad_output, input = operands((8192, 3072))
    selected_wgrad_gemm.product(grad_output[:, 2730:5460], input)
    with pytest.raises(AssertionError):
        check(products, rows=True)
    products.clear()
    selected_wgrad_gemm.product(grad_output[:, 8190:], input)
    with pytest.raises(AssertionError):
        check(products, rows=True)
    products.clear()
    selected_wgrad_gemm.product(grad_output, input[:, :41].contiguous())
    with pytest.raises(AssertionError):
        check(products, rows=False)
