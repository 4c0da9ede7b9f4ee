"""A fifth structure touches four files: one in Python, one in C++ and its line, and one in Triton.

`structure/` has the new ones; the lines that others gain are below.
"""

import ctypes
import importlib.util
import shutil
import subprocess

import example
import pytest
import torch

EDITS = {
    "csrc/layout.h": [
        ('#include "structures/rows.h"', '#include "structures/row_groups.h"\n'),
        ("structure(All)", "  structure(RowGroups) \\\n"),
    ],
    "kernels/layout.py": [
        (
            '"entries": Structure(',
            '    "row_groups": Structure(\n'
            '        "[n]",\n'
            "        lambda n, block_h, block_w, rows, columns: (n, block_h, columns),\n"
            '        "rows",\n'
            "        lambda index, block_h, block_w: (\n"
            "            index[:, None] * block_h + torch.arange(block_h, device=index.device)\n"
            "        ).flatten(),\n"
            "    ),\n",
        ),
        (
            "return row, column",
            '    if KIND == "row_groups":\n'
            "        row += tl.load(index_ptr + b).to(tl.int64) * block_h\n",
        ),
    ],
}
CXX = shutil.which("g++") or shutil.which("clang++")
# Ways in for ctypes: groups of 3 rows of matrices with 70 columns.
ENTRY = """
#include "tests/native/views.h"
using namespace sparse_ft;
static Selection groups_of(int* index, long count) {
  return Selection{kRowGroups, view(index, kInt32, {count}), 3, 1};
}
extern "C" void gather(float* matrix, long rows, int* index, long count, float* values) {
  baseline::gather_selected(view(matrix, kFloat32, {rows, 70}), groups_of(index, count),
                            view(values, kFloat32, {count, 3, 70}), 0, 2);
}
extern "C" void wgrad(float* grad_output, float* input, long tokens, long rows, int* index,
                      long count, float* values) {
  baseline::selected_wgrad(view(grad_output, kFloat32, {tokens, rows}),
                           view(input, kFloat32, {tokens, 70}), groups_of(index, count),
                           view(values, kFloat32, {count, 3, 70}), false, 2);
}
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return tmp_path_factory.mktemp("structure")


@pytest.fixture(scope="module")
def touched(sources):
    return example.apply("structure", EDITS, sources)


def test_it_touches_at_most_four_files(touched):
    assert touched == [
        "csrc/layout.h",
        "csrc/structures/row_groups.h",
        "kernels/layout.py",
        "sparse_ft/structures/row_groups.py",
    ]


TRAINED = """
import torch
import sparse_ft as sft
from sparse_ft.structures.row_groups import RowGroups

torch.manual_seed(0)
shape, groups = (12, 5), RowGroups([0, 2], 3)
mask = torch.zeros(shape, dtype=torch.bool)
mask[0:3] = mask[6:9] = True
assert torch.equal(groups.mask(shape), mask) and groups.nnz(shape) == 30
assert sft.from_mask(mask, kind="row_groups", block_size=3) == groups

dense = torch.nn.Linear(5, 12).double()
model = torch.nn.Sequential(torch.nn.Linear(5, 12).double())
model[0].load_state_dict(dense.state_dict())
sft.convert(model, {"0.weight": groups, "0.bias": "all"}, values_dtype=torch.float64)
ours = sft.SelectiveAdamW(model.parameters(), lr=0.1, weight_decay=0.1)
plain = torch.optim.AdamW(dense.parameters(), lr=0.1, weight_decay=0.1)
frozen = dense.weight.detach().clone()
for _ in range(20):
    x = torch.randn(7, 5, dtype=torch.float64)
    for module, optimizer in ((model, ours), (dense, plain)):
        optimizer.zero_grad()
        module(x).square().sum().backward()
        if module is dense:
            dense.weight.grad[~mask] = 0
        optimizer.step()
    with torch.no_grad():
        dense.weight[~mask] = frozen[~mask]
torch.testing.assert_close(model[0].weight.detach(), dense.weight.detach(), rtol=0, atol=1e-9)
assert torch.equal(model[0].weight.detach()[~mask], frozen[~mask])

plan = sft.Plan({"0.weight": groups})
plan.save("plan.safetensors")
assert sft.Plan.load("plan.safetensors")["0.weight"] == groups
print("trained")
"""


def test_it_trains_as_dense_masked_training_does(sources, touched):
    assert example.run(sources, "-c", TRAINED) == "trained\n"


@pytest.fixture(scope="module")
def compiled(sources, touched):
    if CXX is None:
        pytest.skip("no C++ compiler")
    (sources / "entry.cpp").write_text(ENTRY)
    core = ["checks.cpp", "cpu/gather_selected.cpp", "cpu/selected_wgrad.cpp", "cpu/parallel.cpp"]
    files = ["entry.cpp", *(f"csrc/{name}" for name in core)]
    flags = ["-std=c++17", "-O0", "-fPIC", "-shared", "-I.", "-DSFT_VARIANT=baseline", "-pthread"]
    library = sources / "entry.so"
    subprocess.run(
        [CXX, *flags, "-Wno-psabi", *files, "-o", library, "-ldl"], cwd=sources, check=True
    )
    return ctypes.CDLL(str(library))


def call(function, *arguments):
    """Tensors go by address."""
    as_c = [
        ctypes.c_void_p(each.data_ptr()) if isinstance(each, torch.Tensor) else ctypes.c_long(each)
        for each in arguments
    ]
    function(*as_c)


def test_its_compiled_part_gathers_the_same_entries(compiled):
    matrix, values = torch.randn(12, 70), torch.full((2, 3, 70), float("nan"))
    index = torch.tensor([1, 3], dtype=torch.int32)
    call(compiled.gather, matrix, 12, index, 2, values)
    assert torch.equal(values, matrix.view(4, 3, 70)[[1, 3]])


@pytest.mark.parametrize("count", [2, 15, 30], ids=["few rows", "tiles", "both operands packed"])
def test_its_weight_gradient_is_the_product_of_its_rows(compiled, count):
    rows, tokens = 96, 40
    index = torch.randperm(rows // 3)[:count].sort().values.int()
    grad_output = torch.randint(-4, 5, (tokens, rows)).float()  # sums of small integers are exact
    input = torch.randint(-4, 5, (tokens, 70)).float()
    values = torch.full((count, 3, 70), float("nan"))
    call(compiled.wgrad, grad_output, input, tokens, rows, index, count, values)
    dense = grad_output.T @ input
    assert torch.equal(values, dense.view(rows // 3, 3, 70)[index.long()])


KERNELS = """
import torch
import sparse_ft
from sparse_ft import ops
from sparse_ft.structures.row_groups import RowGroups
from sparse_ft.kernels.gather_selected import gather_selected_triton
from sparse_ft.kernels.scatter_selected import scatter_selected_triton_

layout = RowGroups([1, 3], 3).layout
matrix = torch.randn(12, 70)
values = gather_selected_triton(matrix, *layout)
assert torch.equal(values, ops.gather_selected(matrix, layout)) and values.shape == (2, 3, 70)
into = torch.zeros(12, 70)
scatter_selected_triton_(into, values, *layout)
assert torch.equal(into[3:6], matrix[3:6]) and torch.equal(into[9:], matrix[9:])
assert not into[:3].any() and not into[6:9].any()
print("same")
"""
PRODUCTS = """
import torch
import sparse_ft
from sparse_ft.kernels import layout as walks, selected_wgrad_strips
from sparse_ft.ops._registry import OPS
from sparse_ft.structures.row_groups import RowGroups

on_gpu = {name: OPS[name].backends["triton"] for name in OPS}
kind, index, *block = RowGroups([1, 3], 3).layout
grad_output = torch.randint(-4, 5, (40, 12)).float()  # sums of small integers are exact
input = torch.randint(-4, 5, (40, 70)).float()
want = (grad_output.T @ input).view(4, 3, 70)[[1, 3]]


def check():
    found = on_gpu["selected_wgrad"](grad_output, input, kind, index, *block, dtype=None)
    assert torch.equal(found, want)
    into = torch.ones(2, 3, 70)
    on_gpu["selected_wgrad_"](into, grad_output, input, kind, index, *block)
    assert torch.equal(into, want + 1)
    on_gpu["selected_wgrad_grouped_"]([into], [grad_output], [input], [kind], [index], block)
    assert torch.equal(into, 2 * want + 1)


check()
# As one that is no whole lines, whose entries are taken from strips: here of five rows each.
walks.STRUCTURES[kind] = walks.STRUCTURES[kind]._replace(lines=None)
selected_wgrad_strips.WORKSPACE = 5 * 70 * 4
check()
print("same")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_its_triton_part_moves_the_same_entries(sources, touched):
    assert example.run(sources, "-c", KERNELS, TRITON_INTERPRET="1") == "same\n"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_its_weight_gradient_on_a_gpu_is_the_product_of_its_rows(sources, touched):
    assert example.run(sources, "-c", PRODUCTS, TRITON_INTERPRET="1") == "same\n"
