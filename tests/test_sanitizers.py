"""The native core under sanitizers of addresses and undefined behaviour."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CXX = shutil.which(os.environ.get("CXX", "c++"))

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="builds are tested on Linux"),
]
needs_cxx = pytest.mark.skipif(CXX is None, reason="no C++ compiler")
VECTORISED = "dense_product.cpp", "selected_wgrad.cpp"
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def sanitized(folder, *flags, driver="asan_ops"):
    """A driver of tests/native with the CPU core, under the sanitizers.

    The flags go to the sources that use vectors.
    """
    common = [
        CXX,
        "-std=c++17",
        "-O1",
        "-g1",
        "-fno-strict-aliasing",
        "-Wno-psabi",
        *SANITIZERS,
        "-DSFT_VARIANT=baseline",
    ]
    if subprocess.run(
        [*common, "-x", "c++", "-", "-o", str(folder / "probe")],
        input="int main() {}",
        text=True,
        capture_output=True,
    ).returncode:
        pytest.skip("the compiler has no sanitizers")
    objects = []
    for source in (
        *sorted((ROOT / "csrc").glob("[!b]*.cpp")),
        *sorted((ROOT / "csrc" / "cpu").glob("*.cpp")),
        ROOT / "tests" / "native" / f"{driver}.cpp",
    ):
        if source.name == "variants.cpp":
            continue
        special = flags if source.name in VECTORISED else ()
        objects.append(folder / f"{source.stem}{'_'.join(special)}.o")
        if not objects[-1].exists():
            subprocess.run(
                [*common, *special, "-c", str(source), "-o", str(objects[-1])], check=True
            )
    subprocess.run(
        [*common, *map(str, objects), "-o", str(folder / driver), "-ldl", "-lpthread"], check=True
    )
    return folder / driver


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    return tmp_path_factory.mktemp("objects")


# 64 bytes is the shape of the AVX-512 kernels, which most test machines cannot run as such.
@needs_cxx
@pytest.mark.parametrize("vector_bytes", (16, 32, 64))
def test_every_op_stays_inside_its_buffers(objects, vector_bytes):
    program = sanitized(objects, f"-DSFT_VECTOR_BYTES={vector_bytes}")
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0 and "stayed inside" in done.stdout, done.stderr[-4000:]
    planted = subprocess.run([program, "plant"], capture_output=True, text=True)
    assert planted.returncode and "heap-buffer-overflow" in planted.stderr


@needs_cxx
def test_every_thread_of_a_cuda_launch_writes_what_the_cpu_writes_and_nothing_else(objects):
    """The functions that the CUDA kernels consist of, each thread on the CPU.

    Planted faults show that it can turn red.
    """
    program = sanitized(objects, "-DSFT_VECTOR_BYTES=16", driver="every_thread")
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0 and "stayed inside" in done.stdout, done.stderr[-4000:]
    outside = subprocess.run([program, "bounds"], capture_output=True, text=True)
    assert outside.returncode and "heap-buffer-overflow" in outside.stderr
    for plant in ("twice", "again"):
        twice = subprocess.run([program, plant], capture_output=True, text=True)
        assert twice.returncode == 3 and "written 2 times instead of 1" in twice.stderr
    lanes = subprocess.run([program, "lanes"], capture_output=True, text=True)
    assert lanes.returncode == 2 and "exp_avg" in lanes.stderr


@needs_cxx
def test_variants_share_no_inline_code():
    """An inline function merged across variants could hand AVX-512 code to a machine without it.

    None is external.
    """
    nm = shutil.which("nm")
    folders = sorted((ROOT / "build").glob("**/CMakeFiles/cpu_*.dir"))
    if not nm or not folders:
        pytest.skip("needs nm and a build in this checkout")
    objects = [str(path) for folder in folders for path in folder.rglob("*.o")]
    symbols = subprocess.run(
        [nm, "-C", *objects], capture_output=True, text=True, check=True
    ).stdout
    weak = {
        line.split(maxsplit=2)[2] for line in symbols.splitlines() if " W " in line or " u " in line
    }
    assert not weak, weak
