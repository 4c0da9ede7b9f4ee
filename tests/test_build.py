"""The build as a stranger meets it.

A wheel without nvcc, no compiler, a CUDA compile that fails on a spill.
"""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import setuptools
from helpers import builds
from helpers.builds import ROOT

import sparse_ft as sft

NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
CXX = shutil.which(os.environ.get("CXX", "c++"))

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="builds are tested on Linux"),
]
needs_cxx = pytest.mark.skipif(CXX is None, reason="no C++ compiler")
needs_tools = pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The source archive of what is tracked."""
    folder = tmp_path_factory.mktemp("archive")
    return builds.source_archive(builds.copy_tracked(folder / "tracked"), folder / "dist")


@pytest.fixture(scope="module")
def sources(archive, tmp_path_factory):
    """What a stranger builds from: the source archive, nothing of the checkout beside it."""
    return builds.unpacked(archive, tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def without_compiler(sources, tmp_path_factory):
    """A wheel, and what its build printed."""
    return builds.wheel(sources, tmp_path_factory.mktemp("python"), **builds.NO_COMPILER)


SMOKE = """
import json, torch, sparse_ft as sft
from sparse_ft import kernels, _build_info
from sparse_ft.ops import gather_selected, selected_wgrad
assert sft.__file__.startswith({site!r}), sft.__file__
assert kernels.__path__ == [{site!r} + "/sparse_ft/kernels"], kernels.__path__
grad_output, input, index = torch.randn(9, 5), torch.randn(9, 7), torch.tensor([1, 3])
values = selected_wgrad(grad_output, input, "rows", index)
torch.testing.assert_close(values, gather_selected(grad_output.T @ input, "rows", index))
linear = sft.nn.SelectiveLinear.from_linear(torch.nn.Linear(7, 5), sft.Rows([1, 3]))
linear(input).sum().backward()
assert linear.values.grad.shape == (2, 7)
told = {{"reason": _build_info.REASON, "gather": sft.backends()["gather_selected"]["cpu"][0]}}
if not _build_info.REASON:
    from sparse_ft import _C
    told["built"] = _C.build_info()
print(json.dumps(told))
"""


def packaged():
    """The names under which a wheel holds what is tracked of the packages."""
    names = [name for name in builds.tracked() if name.startswith(("sparse_ft/", "kernels/"))]
    found = {re.sub("^kernels/", "sparse_ft/kernels/", name) for name in names}
    return found | {"sparse_ft_command.py"}


def names_in(wheel):
    """What is in a wheel, but for what describes it."""
    with zipfile.ZipFile(wheel) as file:
        return {name for name in file.namelist() if ".dist-info/" not in name}


def smoke(wheel, folder):
    """What an unpacked wheel says of itself, after it has worked."""
    site = builds.installed(wheel, folder / "site")
    return site, json.loads(builds.run_python(site, SMOKE.format(site=str(site)), folder))


@needs_cxx
@needs_tools
def test_a_wheel_from_the_source_archive_without_nvcc(sources, tmp_path):
    """For one instruction set and not optimised, which takes a fifth of the time; the installation
    that these tests run in is one with all of them.
    """
    wheel, _ = builds.wheel(sources, tmp_path, **builds.QUICK)
    site, told = smoke(wheel, tmp_path)
    compiled = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert (site / "sparse_ft" / compiled).is_file()
    assert told["reason"] == "" and told["gather"] == "native"
    assert told["built"]["cpu_variants"] == ["baseline"]
    assert told["built"]["cuda"] is False
    assert told["built"]["cuda_reason"] == "SPARSE_FT_CUDA=0 when this was built"
    assert names_in(wheel) == packaged() | {f"sparse_ft/{compiled}", "sparse_ft/_build_info.py"}


@needs_tools
def test_without_a_compiler_the_python_part_installs_and_says_why(without_compiler, tmp_path):
    wheel, output = without_compiler
    assert "WITHOUT its compiled part" in output and "Reason: " in output
    site, told = smoke(wheel, tmp_path)
    assert not list(site.rglob("_C*"))
    assert "is not able to compile a simple test program." in told["reason"], told
    assert told["gather"] == "reference"
    assert names_in(wheel) == packaged() | {"sparse_ft/_build_info.py"}


# Beside the packages and the C++ sources, of which all is in the source archive.
TOP_LEVEL = {
    "CHANGELOG.md",
    "CMakeLists.txt",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "pyproject.toml",
    "setup.py",
    "sparse_ft_command.py",
}
WRITTEN = {"PKG-INFO", "setup.cfg"}


def test_the_source_archive_holds_what_a_build_needs_and_nothing_else(archive):
    with tarfile.open(archive) as file:
        found = {member.name.partition("/")[2] for member in file if member.isfile()}
    found = {name for name in found if not name.startswith("sparse_ft.egg-info/")}
    rooms = ("sparse_ft/", "kernels/", "csrc/")
    assert found == TOP_LEVEL | WRITTEN | {n for n in builds.tracked() if n.startswith(rooms)}
    assert archive.stat().st_size < 1 << 20


@needs_tools
def test_the_wheel_is_small_and_says_what_it_is(without_compiler):
    wheel, _ = without_compiler
    assert wheel.stat().st_size < 1 << 20
    with zipfile.ZipFile(wheel) as file:
        (folder,) = {name.partition("/")[0] for name in file.namelist() if "dist-info" in name}
        about = message_from_bytes(file.read(f"{folder}/METADATA"))
        license_text = file.read(f"{folder}/licenses/LICENSE").decode()
    assert about["Version"] == sft.__version__
    assert about["Description-Content-Type"] == "text/markdown"
    assert (
        about.get_payload(decode=True).decode().strip() == (ROOT / "README.md").read_text().strip()
    )
    assert about["License-Expression"] == "Apache-2.0" and "Apache License" in license_text
    assert about["Keywords"].startswith("pytorch")
    assert {"peft", "cli", "quantised", "dp"} <= set(about.get_all("Provides-Extra"))


TINY = """
import torch, transformers
torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=32, hidden_size=24, intermediate_size=40, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=2,
)
model, tokens = transformers.LlamaForCausalLM(config), torch.arange(16).view(2, 8)
batches = [{"input_ids": tokens, "labels": tokens}]
"""
TRAINED = """
import sparse_ft
from peft import get_peft_model
from sparse_ft.peft import SelectiveConfig
print(model(**batches[0]).loss.item())
model = get_peft_model(model, SelectiveConfig(density=0.1, batches=batches))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
for _ in range(3):
    model(**batches[0]).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.save_pretrained("adapter")
"""
LOADED = """
import sparse_ft.peft
from peft import PeftModel
model = PeftModel.from_pretrained(model, "adapter")
"""
TOLD = """
assert sparse_ft.__file__.startswith({site!r}), sparse_ft.__file__
print(model(**batches[0]).loss.item())
"""


@needs_tools
def test_peft_from_a_fresh_install_loads_in_another_process(without_compiler, tmp_path):
    """The lines of the README's PEFT example, each half in a process of its own."""
    pytest.importorskip("peft")
    wheel, _ = without_compiler
    site = builds.installed(wheel, tmp_path / "site")
    told = TOLD.format(site=str(site))
    born, trained = builds.run_python(site, TINY + TRAINED + told, tmp_path).split()
    (loaded,) = builds.run_python(site, TINY + LOADED + told, tmp_path).split()
    assert loaded == trained and float(trained) < float(born)


@pytest.fixture
def build_script(monkeypatch):
    """What setup.py defines, without building anything."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    return runpy.run_path(str(ROOT / "setup.py"))


@pytest.mark.parametrize(
    "torch, has_driver, why",
    [
        ("2.13.0", False, ""),
        ("2.13.0+cu130", False, ""),
        ("2.13.0a0+git1234", False, ""),
        ("2.13.0+cpu", True, "torch 2.13.0+cpu, for which this was built, has no CUDA"),
        ("2.13.0+rocm6.4", True, "torch 2.13.0+rocm6.4, for which this was built, has no CUDA"),
        (None, True, ""),
        (None, False, "no torch to ask and no NVIDIA driver"),
    ],
)
def test_cuda_kernels_are_built_where_somebody_can_run_them(build_script, torch, has_driver, why):
    seen = build_script["why_not_cuda"].__globals__
    seen.update(installed_torch=lambda: torch, has_driver=lambda: has_driver)
    told = build_script["why_not_cuda"]()
    assert told.startswith(why) if why else told == ""
    assert not told or "SPARSE_FT_CUDA=1" in told


def test_the_torch_of_the_environment_is_seen_by_an_isolated_build(build_script, monkeypatch):
    import torch

    assert build_script["installed_torch"]() == torch.__version__
    folder = str(Path(torch.__file__).parents[1])
    monkeypatch.setattr(
        sys,
        "path",
        [entry for entry in sys.path if Path(entry).resolve() != Path(folder).resolve()],
    )
    monkeypatch.setattr(sysconfig, "get_path", lambda name: folder)
    assert build_script["installed_torch"]() == torch.__version__


NO_COMPILER = """
-- The CXX compiler identification is unknown
CMake Error at CMakeLists.txt:2 (project):
  No CMAKE_CXX_COMPILER could be found.

  Tell CMake where to find the compiler by setting either the environment
  variable "CXX" or the CMake cache entry CMAKE_CXX_COMPILER to the full path.


-- Configuring incomplete, errors occurred!
"""
NO_CORE = """
[1/3] Building CXX object x.o
x.cpp:3:1: error: expected ';'
ninja: build stopped: subcommand failed.
"""


@pytest.mark.parametrize(
    "output, reason",
    [
        (NO_COMPILER, "No CMAKE_CXX_COMPILER could be found."),
        (NO_CORE, "x.cpp:3:1: error: expected ';'"),
        ("one\ntwo\nthree\nfour\n", "two | three | four"),
    ],
)
def test_a_failed_step_is_told_by_what_it_said(build_script, output, reason):
    assert build_script["telling"](output) == reason


def test_instruction_sets_that_nobody_knows_are_named(build_script, monkeypatch):
    assert build_script["cpu_variants"]() == "baseline;avx2;avx512"
    monkeypatch.setenv("SPARSE_FT_CPU_VARIANTS", "baseline;avx3")
    with pytest.raises(SystemExit, match="some of baseline;avx2;avx512, got 'avx3'"):
        build_script["cpu_variants"]()


@needs_tools
def test_demanded_cuda_that_cannot_be_had_fails(sources, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "setup.py",
            "build_ext",
            "--build-lib",
            str(tmp_path / "lib"),
            "--build-temp",
            str(tmp_path / "temp"),
        ],
        cwd=sources,
        capture_output=True,
        text=True,
        env={**os.environ, "SPARSE_FT_CUDA": "1", "CUDACXX": "/bin/false", "CXX": "/bin/false"},
    )
    assert done.returncode and "SPARSE_FT_CUDA=1, but the CUDA build failed" in done.stderr, (
        done.stderr[-2000:]
    )


def cuda_flags():
    """The warning flags of CMakeLists.txt, so that the two cannot drift apart."""
    text = (ROOT / "CMakeLists.txt").read_text()
    flags = [
        word.rstrip(">)")
        for word in text.split()
        if word.startswith(("--fmad", "--Werror", "-Xptxas"))
    ]
    assert len(flags) == 3, flags
    return flags


def compile_cuda(source, tmp_path):
    return subprocess.run(
        [
            NVCC,
            "-std=c++17",
            "-O3",
            "-arch=sm_90",
            *cuda_flags(),
            "-I",
            str(ROOT / "csrc" / "cuda"),
            "-c",
            str(source),
            "-o",
            str(tmp_path / "out.o"),
        ],
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
def test_cuda_compiles_without_a_warning_and_a_spill_is_an_error(tmp_path):
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        done = compile_cuda(source, tmp_path)
        assert done.returncode == 0, f"{source.name}: {done.stderr[-4000:]}"
    spilling = tmp_path / "spilling.cu"
    spilling.write_text("""
__global__ void __launch_bounds__(1024, 2) spilling(const float* x, float* y) {
  float a[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) a[i] = x[threadIdx.x * 96 + i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; ++i) y[threadIdx.x + 1024 * i] = a[i] * a[95 - i] + a[(i * 7) % 96];
}
""")
    done = compile_cuda(spilling, tmp_path)
    assert done.returncode and "spill" in (done.stdout + done.stderr).lower(), done.stderr
