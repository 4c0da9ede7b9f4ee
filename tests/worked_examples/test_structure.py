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
            '        "[n]", lambda n, block_h, block_w, rows, columns: (n, block_h, columns)\n'
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
# A way in for ctypes.
ENTRY = """
#include "tests/native/views.h"
extern "C" void entry(float* matrix, int* index, float* values) {
  using namespace sparse_ft;
  const Selection groups{kRowGroups, view(index, kInt32, {2}), 3, 1};
  baseline::gather_selected(view(matrix, kFloat32, {12, 70}), groups,
                            view(values, kFloat32, {2, 3, 70}), 0, 2);
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


@pytest.mark.skipif(CXX is None, reason="no C++ compiler")
def test_its_compiled_part_gathers_the_same_entries(sources, touched):
    (sources / "entry.cpp").write_text(ENTRY)
    core = ["checks.cpp", "cpu/gather_selected.cpp", "cpu/parallel.cpp"]
    files = ["entry.cpp", *(f"csrc/{name}" for name in core)]
    flags = ["-std=c++17", "-O0", "-fPIC", "-shared", "-I.", "-DSFT_VARIANT=baseline", "-pthread"]
    library = sources / "entry.so"
    subprocess.run(
        [CXX, *flags, "-Wno-psabi", *files, "-o", library, "-ldl"], cwd=sources, check=True
    )
    matrix, values = torch.randn(12, 70), torch.full((2, 3, 70), float("nan"))
    tensors = matrix, torch.tensor([1, 3], dtype=torch.int32), values
    call = ctypes.CDLL(str(library)).entry
    call(*(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors))
    assert torch.equal(values, matrix.view(4, 3, 70)[[1, 3]])


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


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_its_triton_part_moves_the_same_entries(sources, touched):
    assert example.run(sources, "-c", KERNELS, TRITON_INTERPRET="1") == "same\n"
