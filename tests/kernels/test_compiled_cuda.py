"""The CUDA kernels inside the compiled part, disassembled.

Nothing in local memory, and streams 16 bytes at a time.
"""

import collections
import re
import shutil
import subprocess

import pytest

from sparse_ft.ops import _native

pytest.importorskip("triton", reason="triton is not installed, and with it no cuobjdump")
from compiled import TOOLS  # noqa: E402

if not _native.CUDA:
    pytest.skip("no CUDA kernels were built into sparse_ft._C", allow_module_level=True)

NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
ARCHITECTURES = [
    name for name in _native.C.build_info()["cuda_architectures"] if name.startswith("sm_")
]
SIZES = {"f": 4, "d": 8, "Float16": 2, "BFloat16": 2, "Lb1": 1}  # Lb1: moments in 8 bits
MOVERS = ("gather_selected_kernel", "scatter_selected_kernel")


def element_sizes(mangled):
    """Bytes of each dtype among the arguments of a template.

    f, d, names after their length, S2_ for the one before.
    """
    sizes = []
    while mangled:
        token = re.match(r"NS_|E\dE|Lb1|S\d*_|\d+|.", mangled)[0]
        mangled = mangled[len(token) :]
        if token.isdigit():
            token, mangled = mangled[: int(token)], mangled[int(token) :]
        if token in SIZES or token.startswith("S"):
            sizes.append(SIZES.get(token) or sizes[-1])
    return tuple(sizes)


def kernels(path, *options):
    """[(name, bytes of each type it is made for, resources, Counter of its instructions)] of a file
    with cubins.
    """
    usage, sass = (
        subprocess.run(
            [TOOLS / "cuobjdump", *options, what, path], check=True, capture_output=True, text=True
        ).stdout
        for what in ("-res-usage", "-sass")
    )
    resources = dict(
        re.findall(r"Function (\w+):\s*REG:\d+ (STACK:\d+ SHARED:\d+ LOCAL:\d+)", usage)
    )
    found = []
    for mangled, body in re.findall(r"Function : (\w+)\n(.*?)(?=Function : |\Z)", sass, re.S):
        opcodes = collections.Counter(
            re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", body)
        )
        name, types = re.search(r"\d([a-z_]+_kernel)(?:I(.*?)EEv)?", mangled).groups()
        found.append((name, element_sizes(types or ""), resources[mangled], opcodes))
    return found


def wide(opcodes, kind):
    """16-byte accesses of global memory, LDG or STG."""
    return sum(n for opcode, n in opcodes.items() if opcode.startswith(kind) and ".128" in opcode)


def check_nothing_spills(resources, opcodes):
    local = [opcode for opcode in opcodes if opcode.startswith(("LDL", "STL"))]
    assert resources.startswith("STACK:0 ") and resources.endswith(" LOCAL:0") and not local, (
        f"local memory: {resources} {local}"
    )


def check_moves(name, matrix, values, opcodes):
    """The wider side moves 16 bytes at a time where it adjoins, beside the index of entries, which
    always does.
    """
    pack = 16 // max(matrix, values)
    of_index = sum(pack * index // 16 for index in (4, 8))
    to, source = (values, matrix) if name.startswith("gather") else (matrix, values)
    assert to < source or wide(opcodes, "STG") >= 1, "narrow stores"
    assert source < to or wide(opcodes, "LDG") > of_index, "narrow loads"


def check_streams(opcodes, loads, stores):
    assert wide(opcodes, "LDG") >= loads, "narrow loads"
    assert wide(opcodes, "STG") >= stores, "narrow stores"


@pytest.fixture(scope="module")
def compiled_kernels():
    return {name: kernels(_native.C.__file__, "-arch", name) for name in ARCHITECTURES}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_spills(architecture, compiled_kernels):
    assert len(compiled_kernels[architecture]) >= 40
    for _, _, resources, opcodes in compiled_kernels[architecture]:
        check_nothing_spills(resources, opcodes)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_moves_are_wide(architecture, compiled_kernels):
    for kernel in MOVERS:
        mine = [found for found in compiled_kernels[architecture] if found[0] == kernel]
        assert len(mine) == 16 and {sizes for _, sizes, *_ in mine} == {
            (a, b) for a in (2, 4, 8) for b in (2, 4, 8)
        }
        for _, sizes, _, opcodes in mine:
            check_moves(kernel, *sizes, opcodes)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_streams_of_a_step_are_wide(architecture, compiled_kernels):
    """masked_adamw_: four streams in, three of them out again; the look for inf and NaN: one in.

    Codes are narrower.
    """
    steps = "masked_adamw_kernel", "masked_adamw_varied_kernel"
    streams = {**dict.fromkeys(steps, (4, 3)), "nonfinite_kernel": (1, 0)}
    for kernel, (loads, stores) in streams.items():
        mine = [found for found in compiled_kernels[architecture] if found[0] == kernel]
        assert len(mine) >= 4
        for _, sizes, _, opcodes in mine:
            # Of doubles only the half with the exponent is looked at.
            if kernel in steps or sizes[0] < 8:
                codes = 2 if sizes[-1] == 1 and loads > 1 else 0
                check_streams(opcodes, loads - codes, stores - codes)


def test_the_names_of_kernels():
    """As nvcc writes them for <float, BFloat16>, <Float16, Float16> and <Format<BFloat16,
    Rounding(2), true>>.
    """
    assert element_sizes("fNS_8BFloat16E") == (4, 2) and element_sizes("NS_7Float16ES2_") == (2, 2)
    assert element_sizes("NS_6FormatINS_8BFloat16ELNS_8RoundingE2ELb1E") == (2, 1)
    assert element_sizes("NS_6FormatIdLNS_8RoundingE0ELb0E") == (8,)


WRONG = """
namespace sparse_ft {
template <class M, class V>
__global__ void gather_selected_kernel(const M* m, const long* index, V* v, long n) {
  const long k = blockIdx.x * 256L + threadIdx.x;
  if (k < n) v[k] = m[index[k]];
}
template <class T> __global__ void masked_adamw_kernel(T* p, const T* g, long n) {
  const long k = blockIdx.x * 256L + threadIdx.x;
  if (k < n) p[k] -= g[k];
}
template <class T> __global__ void __launch_bounds__(1024) spilling_kernel(T* p, const int* at) {
  T held[64];
  for (int i = 0; i < 64; ++i) held[i] = p[threadIdx.x + i * 1024];
  for (int i = 0; i < 64; ++i) held[at[i]] += held[at[i + 1]];
  p[threadIdx.x] = held[at[threadIdx.x]];
}
template __global__ void gather_selected_kernel<float, float>(
    const float*, const long*, float*, long);
template __global__ void masked_adamw_kernel<float>(float*, const float*, long);
template __global__ void spilling_kernel<float>(float*, const int*);
}
"""


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
def test_each_check_can_fail(tmp_path):
    """Kernels with an element a thread, and with an array that only local memory can hold."""
    (tmp_path / "wrong.cu").write_text(WRONG)
    command = [NVCC, "-arch=sm_90", "-cubin", "-o", tmp_path / "wrong.cubin", tmp_path / "wrong.cu"]
    subprocess.run(command, check=True, capture_output=True)
    wrong = {name: rest for name, *rest in kernels(tmp_path / "wrong.cubin")}
    assert set(wrong) == {"gather_selected_kernel", "masked_adamw_kernel", "spilling_kernel"}
    with pytest.raises(AssertionError, match="local memory: STACK:256"):
        check_nothing_spills(*wrong["spilling_kernel"][1:])
    sizes, _, opcodes = wrong["gather_selected_kernel"]
    assert sizes == (4, 4)
    with pytest.raises(AssertionError, match="narrow stores"):
        check_moves("gather_selected_kernel", *sizes, opcodes)
    with pytest.raises(AssertionError, match="narrow loads"):
        check_moves(
            "gather_selected_kernel", *sizes, opcodes + collections.Counter({"STG.E.128": 1})
        )
    for loads, stores, what in ((4, 0, "loads"), (0, 3, "stores")):
        with pytest.raises(AssertionError, match=f"narrow {what}"):
            check_streams(wrong["masked_adamw_kernel"][2], loads, stores)
