"""The build as a stranger meets it.

A wheel without nvcc, no compiler, a CUDA compile that fails on a spill, sanitizers.
"""

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "CMakeLists.txt",
    "LICENSE",
    "README.md",
    "csrc",
    "kernels",
    "sparse_ft",
)
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
CXX = shutil.which(os.environ.get("CXX", "c++"))

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="builds are tested on Linux"),
]
needs_cxx = pytest.mark.skipif(CXX is None, reason="no C++ compiler")
needs_tools = pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of what is tracked, so that nothing left over from earlier builds can help."""
    copy = tmp_path_factory.mktemp("sources")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--", *SOURCES], cwd=ROOT, capture_output=True, text=True
    ).stdout
    names = [name for name in tracked.split("\0") if name]
    if not names:
        pytest.skip("not a git checkout: no list of tracked files")
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    return copy


def build_wheel(sources, into, **environment):
    """Build without isolation (the tools are in this environment) and unpack.

    Returns the folder and the build's output.
    """
    work = into / "work"
    shutil.copytree(sources, work)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            ".",
            "--no-deps",
            "--no-build-isolation",
            "-v",
            "-w",
            str(into / "wheels"),
        ],
        cwd=work,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "", **environment},
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-4000:]
    (wheel,) = (into / "wheels").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(into / "site")
    return into / "site", output


def run_python(site, script, cwd):
    """Run a script that sees the unpacked wheel and, from another directory, nothing of this
    checkout.
    """
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


SMOKE = """
import torch, sparse_ft as sft
from sparse_ft import kernels
from sparse_ft.ops import gather_selected, selected_wgrad
assert sft.__file__.startswith({site!r}), sft.__file__
assert kernels.__path__ == [{site!r} + "/sparse_ft/kernels"], kernels.__path__
grad_output, input, index = torch.randn(9, 5), torch.randn(9, 7), torch.tensor([1, 3])
values = selected_wgrad(grad_output, input, "rows", index)
torch.testing.assert_close(values, gather_selected(grad_output.T @ input, "rows", index))
linear = sft.nn.SelectiveLinear.from_linear(torch.nn.Linear(7, 5), sft.Rows([1, 3]))
linear(input).sum().backward()
assert linear.values.grad.shape == (2, 7)
print(sft.backends())
"""


@needs_cxx
@needs_tools
def test_wheel_without_nvcc(sources, tmp_path):
    start = time.perf_counter()
    site, _ = build_wheel(sources, tmp_path, SPARSE_FT_CUDA="0")
    print(f"wheel without nvcc built in {time.perf_counter() - start:.0f} s")
    names = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    assert f"sparse_ft/_C{sysconfig.get_config_var('EXT_SUFFIX')}" in names
    assert "sparse_ft/py.typed" in names
    tracked = [
        path for folder in ("sparse_ft", "kernels") for path in (sources / folder).rglob("*.py")
    ]
    packaged = {
        (
            str(path.relative_to(sources)).replace("kernels/", "sparse_ft/kernels/", 1)
            if path.is_relative_to(sources / "kernels")
            else str(path.relative_to(sources))
        )
        for path in tracked
    }
    assert packaged <= names, packaged - names
    run_python(site, SMOKE.format(site=str(site)), tmp_path)
    told = run_python(
        site,
        "from sparse_ft import _C, _build_info as b; i = _C.build_info(); print(repr(b.REASON),"
        " i['cuda'], i['cuda_reason'])",
        tmp_path,
    )
    assert told.split(maxsplit=2) == ["''", "False", "SPARSE_FT_CUDA=0 when this was built\n"]


@needs_tools
def test_without_a_compiler_the_python_part_installs_and_says_why(sources, tmp_path):
    site, output = build_wheel(sources, tmp_path, CXX="/bin/false", SPARSE_FT_CUDA="0")
    assert "WITHOUT its compiled part" in output and "Reason: " in output
    assert not list(site.rglob("_C*"))
    reason = run_python(
        site, "from sparse_ft import _build_info; print(_build_info.REASON)", tmp_path
    )
    assert "is not able to compile a simple test program." in reason, reason
    (metadata,) = site.glob("*.dist-info/METADATA")
    told = metadata.read_text()
    assert (
        "Description-Content-Type: text/markdown" in told
        and "# sparse_ft" in told
        and "Keywords: pytorch" in told
    )
    assert "reference" in run_python(site, SMOKE.format(site=str(site)), tmp_path)


TINY = """
import sys, torch, transformers
torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=32, hidden_size=24, intermediate_size=40, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=2,
)
model, tokens = transformers.LlamaForCausalLM(config), torch.arange(16).view(2, 8)
batches = [{"input_ids": tokens, "labels": tokens}]
"""
TRAINED = """
from peft import get_peft_model
from sparse_ft.peft import SelectiveConfig
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
def test_peft_from_a_fresh_install_loads_in_another_process(sources, tmp_path):
    """The lines of the README's PEFT example, each half in a process of its own."""
    pytest.importorskip("peft")
    site, _ = build_wheel(sources, tmp_path, CXX="/bin/false", SPARSE_FT_CUDA="0")
    told = TOLD.format(site=str(site))
    trained = run_python(site, TINY + "import sparse_ft" + TRAINED + told, tmp_path)
    loaded = run_python(site, TINY + LOADED + told, tmp_path)
    born = run_python(site, TINY + "import sparse_ft" + told, tmp_path)
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
