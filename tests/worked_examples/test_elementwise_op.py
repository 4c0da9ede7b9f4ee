"""An elementwise op with a reference, a CPU kernel and a Triton kernel touches seven files.

`elementwise_op/` has the new ones; the lines that others gain are below.
"""

import ctypes
import importlib.util
import shutil
import subprocess

import example
import pytest
import torch

EDITS = {
    "sparse_ft/ops/__init__.py": [
        ("__all__ = [", "from .squared_relu import squared_relu\n\n"),
        ('"swap_selected_"', '    "squared_relu",\n'),
    ],
    "csrc/cpu/ops.h": [
        ("op(void, gated_product, ", "  op(void, squared_relu, In input, Out output) \\\n")
    ],
    "CMakeLists.txt": [("csrc/cpu/selected_wgrad.cpp", "  csrc/cpu/squared_relu.cpp\n")],
}
CXX = shutil.which("g++") or shutil.which("clang++")
# A way in for ctypes.
ENTRY = """
#include "tests/native/views.h"
extern "C" void entry(float* input, float* output, long count) {
  using namespace sparse_ft;
  baseline::squared_relu(view(input, kFloat32, {count}), view(output, kFloat32, {count}), 2);
}
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return tmp_path_factory.mktemp("elementwise")


@pytest.fixture(scope="module")
def touched(sources):
    return example.apply("elementwise_op", EDITS, sources)


def test_it_touches_seven_files(touched):
    assert touched == [
        "CMakeLists.txt",
        "csrc/cpu/ops.h",
        "csrc/cpu/squared_relu.cpp",
        "kernels/squared_relu.py",
        "sparse_ft/ops/__init__.py",
        "sparse_ft/ops/squared_relu.py",
        "tests/ops/test_squared_relu.py",
    ]


def test_the_op_and_its_reference_pass_their_test(sources, touched):
    found = example.run(sources, "-m", "pytest", "-q", "tests/ops/test_squared_relu.py")
    assert "10 passed" in found
    code = "import sparse_ft as sft; print(sft.backends()['squared_relu'])"
    assert "'native'" not in (told := example.run(sources, "-c", code)) and "reference" in told


@pytest.mark.skipif(CXX is None, reason="no C++ compiler")
def test_the_cpu_kernel_compiles_and_computes(sources, touched):
    (sources / "entry.cpp").write_text(ENTRY)
    library = sources / "entry.so"
    files = ["entry.cpp", "csrc/cpu/squared_relu.cpp", "csrc/checks.cpp", "csrc/cpu/parallel.cpp"]
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-I.", "-DSFT_VARIANT=baseline", "-pthread"]
    subprocess.run([CXX, *flags, *files, "-o", str(library), "-ldl"], cwd=sources, check=True)
    x, y = torch.randn(3001), torch.full((3001,), float("nan"))
    call = ctypes.CDLL(str(library)).entry
    call(*(ctypes.c_void_p(t.data_ptr()) for t in (x, y)), ctypes.c_long(x.numel()))
    assert torch.equal(y, x.relu().square())


KERNEL = """
import torch
from sparse_ft.kernels.squared_relu import squared_relu_triton
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    x = torch.randn(37, 41, dtype=torch.float64).to(dtype).t()
    y = torch.full(x.shape, float("nan"), dtype=dtype)
    squared_relu_triton(x, y)
    wide = x if dtype == torch.float64 else x.float()
    assert torch.equal(y, wide.relu().square().to(dtype))
print("same")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_triton_kernel_computes_the_same(sources, touched):
    found = example.run(sources, "-c", KERNEL, TRITON_INTERPRET="1")
    assert found == "same\n"
