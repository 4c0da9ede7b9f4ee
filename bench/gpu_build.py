"""Stage `build`: the package in this checkout, with CUDA kernels for this GPU.

    python -m bench.gpu_build              a carried build where it fits, else one made here
    python -m bench.gpu_build --only-look  is there one that imports?
    python -m bench.gpu_build --carry 90   fills CARRY for another machine (needs a registry)

A CUDA build that fails, or takes too long, costs the CUDA kernels: Triton's and the references
serve without them, and a row says so.
"""

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import gpu_children, gpu_pybind11
from bench.gpu_calls import ROOT
from bench.gpu_results import OK, RED, SHORT, SKIPPED, Results

STAGE = "build"
CUDA_SECONDS = 100.0  # of a first try; what remains of the stage is enough for one without CUDA
OTHER_SECONDS = 45.0
SOURCES = "sources.txt"  # what a carried build was made of
CACHE = "triton.tar.gz"
EXTENSION = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
PACKAGE = ROOT / "sparse_ft"
KERNELS = PACKAGE / "kernels"
OUT = ROOT / "bench" / "out"
CAPABILITY = "import torch; print('%d%d' % torch.cuda.get_device_capability())"
# Of a build with CUDA a launch must go through; whether it is right is the next stage's question.
LOOK = """
import torch, sparse_ft, sparse_ft.kernels
from sparse_ft import _C
info = _C.build_info()
if info["cuda"] and torch.cuda.is_available():
    matrix = torch.arange(12.0, device="cuda").view(3, 4)
    index = torch.tensor([0, 2], device="cuda", dtype=torch.int32)
    sparse_ft.ops.gather_selected(matrix, "rows", index, 1, 1)
    torch.cuda.synchronize()
print(torch.__version__, info)
"""


def carry_folder() -> Path:
    return Path(os.environ.get("CARRY") or OUT / "carry")


def cache_folder() -> Path:
    """Triton's, as bench/gpu.sh names it."""
    return Path(os.environ.get("TRITON_CACHE_DIR") or carry_folder() / "triton")


def pack_cache(where: Path) -> None:
    """Triton's cache as one file of a folder of results, for the CARRY of a later run."""
    if cache_folder().is_dir():
        name = CACHE.removesuffix(".tar.gz")
        shutil.make_archive(str(where / name), "gztar", cache_folder())


def fingerprint(root: Path = ROOT) -> str:
    """Of everything that the compiled part is made of."""
    digest = hashlib.sha256()
    sources = [root / "CMakeLists.txt", *sorted((root / "csrc").rglob("*"))]
    for path in sources:
        if path.is_file():
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def finishes(
    command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None
) -> str:
    """Why a command did not end well in so many seconds; empty where it did."""
    given = {**os.environ, **(environment or {})}
    child = gpu_children.start(command, own_group=True, cwd=ROOT, env=given)
    limit = time.monotonic() + seconds
    try:
        while child.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        status = child.poll()
    finally:
        gpu_children.end(child)
    if status is None:
        return f"it took more than {seconds:g} s"
    return f"status {status}" if status else ""


def look(seconds: float = 60.0) -> str:
    """Why the package that Python finds does not serve; empty where it does."""
    return finishes([sys.executable, "-c", LOOK], seconds)


def link_kernels() -> None:
    """`sparse_ft.kernels` without an installation."""
    if not KERNELS.is_symlink():
        KERNELS.symlink_to(Path("..") / "kernels")


def take_carried(folder: Path) -> str:
    """Use the build in a folder. Why it does not serve; empty where it does."""
    built = folder / EXTENSION
    if not built.exists():
        others = sorted(path.name for path in folder.glob("_C*.so"))
        return f"there is no {EXTENSION} in {folder}, but {others}" if others else "none is there"
    sources = folder / SOURCES
    if not sources.exists() or sources.read_text().strip() != fingerprint():
        return "it was made of other sources"
    shutil.copy(built, PACKAGE / EXTENSION)
    link_kernels()
    why = look()
    if why:
        (PACKAGE / EXTENSION).unlink()
        KERNELS.unlink()
    return why


def install(seconds: float, **settings: str) -> str:
    """Build and install in place. Why that failed; empty where it did not."""
    words = ["pip", "install", "-v", "--no-build-isolation", "--no-deps", "-e", "."]
    if KERNELS.is_symlink():
        KERNELS.unlink()
    return finishes([sys.executable, "-m", *words], seconds, settings)


def architecture() -> str:
    """The compute capability of the GPU here, such as 90."""
    asked = subprocess.run([sys.executable, "-c", CAPABILITY], capture_output=True, text=True)
    return asked.stdout.strip() if asked.returncode == 0 else "90"


def build_here(results: Results) -> bool:
    """Whether there is a build now: with CUDA, or with a row that says why not."""
    if subprocess.run([sys.executable, "-c", "import pybind11"], capture_output=True).returncode:
        gpu_pybind11.write(OUT / "pybind11")
    werror = os.environ.get("WERROR", "0")
    settings = {"SPARSE_FT_CUDA_ARCHITECTURES": architecture(), "SPARSE_FT_WERROR": werror}
    why = "no nvcc on the PATH or in /usr/local/cuda"
    if shutil.which("nvcc"):
        why = install(CUDA_SECONDS, SPARSE_FT_CUDA="1", **settings) or look()
        if not why:
            results.add(STAGE, f"built here, sm_{architecture()}", status=OK)
            return True
    results.add(STAGE, f"no CUDA kernels: {why}, see {STAGE}.log", status=SHORT)
    why = install(OTHER_SECONDS, SPARSE_FT_CUDA="0", SPARSE_FT_WERROR=werror) or look()
    if why:
        results.add(STAGE, f"the package does not build: {why}, see {STAGE}.log", status=RED)
        return False
    results.add(STAGE, "built here, without CUDA kernels", status=OK)
    return True


def install_wheels(folder: Path, results: Results) -> None:
    wheels = [str(path) for path in sorted(folder.glob("*.whl"))]
    if not wheels:
        return
    words = ["pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
    target = ["--target", str(OUT / "site")]
    why = finishes([sys.executable, "-m", *words, *target, *wheels], 60.0)
    if why:
        results.add(STAGE, f"wheels of {folder}: {why}", status=RED)


def build(results: Results) -> bool:
    folder = carry_folder()
    install_wheels(folder / "wheels", results)
    if (folder / CACHE).exists():
        shutil.unpack_archive(folder / CACHE, cache_folder())
    why = take_carried(folder)
    if not why:
        results.add(STAGE, "carried", status=OK)
        return True
    if folder.exists():
        results.add(STAGE, f"no carried build: {why}", status=SKIPPED)
    return build_here(results)


def carry(capability: str) -> int:
    """Fill the folder CARRY with a build for this Python and for GPUs of a compute capability."""
    folder = carry_folder()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"SPARSE_FT_CUDA": "1", "SPARSE_FT_CUDA_ARCHITECTURES": capability}
    given = {name: value for name, value in os.environ.items() if name != "PIP_NO_INDEX"}
    with tempfile.TemporaryDirectory() as place:
        words = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", place, str(ROOT)]
        subprocess.run(words, check=True, env={**given, **settings})
        (wheel,) = Path(place).glob("*.whl")
        with zipfile.ZipFile(wheel) as packed:
            (folder / EXTENSION).write_bytes(packed.read(f"sparse_ft/{EXTENSION}"))
    (folder / SOURCES).write_text(fingerprint() + "\n")
    print(f"{folder}: {EXTENSION}, sm_{capability}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only-look", action="store_true")
    parser.add_argument("--carry", metavar="CAPABILITY")
    given = parser.parse_args(arguments)
    if given.carry:
        return carry(given.carry)
    # What it started ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if not given.only_look:
        return int(not build(Results()))
    why = look()
    if why:
        note = f"no build that imports ({why}): bench/gpu.sh build comes first"
        Results().add("ready", note, status=RED)
    return int(bool(why))


if __name__ == "__main__":
    sys.exit(main())
