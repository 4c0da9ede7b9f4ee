"""Which compiled variant runs, and on whose threads."""

import subprocess
import sys

import core
import oracle
import pytest
import torch
from core import C


def test_best_variant_is_chosen_and_unknown_ones_are_refused():
    info = C.build_info()
    assert info["cpu_variant"] == info["cpu_variants"][0] and info["cpu_variants"][-1] == "baseline"
    for name in {"avx512", "sse9", ""} - set(info["cpu_variants"]):
        with pytest.raises(ValueError, match=f"'{name}' is not a variant"):
            C.set_cpu_variant(name)
    assert C.build_info() == info


def test_build_info_names_cuda_or_the_reason():
    info = C.build_info()
    assert info["version"] and info["compiler"]
    assert bool(info["cuda_architectures"]) == info["cuda"] == (info["cuda_reason"] == "")


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="only there does PyTorch load its OpenMP runtime with global symbols",
)
def test_threads_are_those_of_pytorch():
    runtime = C.build_info()["threads"]
    assert "torch" in runtime and "omp" in runtime, runtime
    linked = subprocess.run(["ldd", C.__file__], capture_output=True, text=True).stdout
    assert "libc" in linked and "omp" not in linked


def test_works_on_its_own_threads_without_pytorch():
    script = """
import array, sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("_C", sys.argv[1])
C = module_from_spec(spec)
spec.loader.exec_module(C)
assert C.build_info()["threads"] == "std::thread" and "torch" not in sys.modules

class Tensor:
    is_cpu = True

    def __init__(self, items, dtype, *shape):
        self.items, self.dtype, self.shape = items, dtype, shape

    def data_ptr(self):
        return self.items.buffer_info()[0]

    def stride(self):
        return (self.shape[1], 1) if len(self.shape) == 2 else (1,)

def zeros(*shape):
    return Tensor(array.array("f", bytes(4 * n * n)), "torch.float32", *shape)

def layout(kind, index):
    return kind, Tensor(array.array("q", index), "torch.int64", len(index)), 1, 1

n = 300
a, out = Tensor(array.array("f", range(n * n)), "torch.float32", n, n), zeros(n, n)
C.gather_selected(a, layout("all", ()), out, 0, 4)
assert a.items == out.items
ones = Tensor(array.array("f", [1.0] * n * n), "torch.float32", n, n)
for where in (layout("all", ()), layout("entries", range(n * n))):
    grad = zeros(n, n)
    C.selected_wgrad(ones, ones, where, grad, False, 3)
    assert set(grad.items) == {float(n)}, where
"""
    subprocess.run([sys.executable, "-c", script, C.__file__], check=True, timeout=300)


@pytest.mark.parametrize("kind", oracle.KINDS)
def test_variants_agree_to_rounding(kind):
    layout = oracle.layout(kind, (90, 110), "some", block=(16, 20))
    grad_output, input = torch.randn(400, 90), torch.randn(400, 110)
    want = oracle.gather(grad_output.double().T @ input.double(), layout)
    chosen = C.build_info()["cpu_variant"]
    for name in core.variants():
        C.set_cpu_variant(name)
        got = core.wgrad(torch.empty(want.shape), grad_output, input, layout)
        assert (got - want).abs().max() < 400 * torch.finfo(torch.float32).eps * 10
    C.set_cpu_variant(chosen)
