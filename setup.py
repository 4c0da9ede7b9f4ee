"""Builds sparse_ft._C with CMake. Needs neither torch nor a GPU.

Environment:
  SPARSE_FT_CUDA=0|1
      Forbid or demand the CUDA kernels. Otherwise they are built where nvcc is found and there is
      use for them: a torch with CUDA, or an NVIDIA driver where no torch is seen.
  SPARSE_FT_CUDA_ARCHITECTURES=…
      Compute capabilities, e.g. "80;90;100" (the default).
  SPARSE_FT_CPU_VARIANTS=…
      The instruction sets to compile the CPU kernels for, e.g. "baseline;avx2". Otherwise all that
      the compiler knows. "baseline" is always among them.
  SPARSE_FT_BUILD_TYPE=Debug
      CMake's build type, Release where nothing is said. Debug compiles in a fraction of the time
      and runs slowly: for tests of the build.
  SPARSE_FT_WERROR=1
      Warnings of the C++ and CUDA compilers are errors, for developers.

A machine without a C++ compiler gets the package without its compiled part: slower, but right. The
reason is recorded in sparse_ft/_build_info.py.
"""

import ctypes.util
import importlib.metadata
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CPU_VARIANTS = ("baseline", "avx2", "avx512")


class BuildFailed(Exception):
    """A CMake step that failed; the message is the part of its output that says why."""


def version():
    text = (ROOT / "sparse_ft" / "_version.py").read_text()
    return re.search(r'^__version__ = "(.+)"', text, re.M).group(1)


def cpu_variants():
    """The instruction sets asked for, as CMake's list."""
    asked = os.environ.get("SPARSE_FT_CPU_VARIANTS") or ";".join(CPU_VARIANTS)
    for name in asked.split(";"):
        if name not in CPU_VARIANTS:
            known = ";".join(CPU_VARIANTS)
            raise SystemExit(f"SPARSE_FT_CPU_VARIANTS: expected some of {known}, got {name!r}")
    return asked


def find_nvcc():
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    candidates = [
        os.environ.get("CUDACXX"),
        *(f"{home}/bin/nvcc" for home in homes if home),
        "nvcc",
    ]
    return next(filter(None, (shutil.which(c) for c in candidates if c)), None)


def installed_torch():
    """Version of the torch that this is built for, None where there is none to see.

    It is not imported.

    A build that pip isolates sees its own packages only, but runs in the environment that it
    installs to, whose folders are these.
    """
    folders = [
        *sys.path,
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        site.getusersitepackages(),
    ]
    found = importlib.metadata.distributions(name="torch", path=folders)
    return next((distribution.version for distribution in found), None)


def has_driver():
    """Whether an NVIDIA driver is installed."""
    places = "/proc/driver/nvidia", "/dev/nvidiactl", "/usr/lib/wsl/lib/libcuda.so.1"
    is_placed = any(Path(place).exists() for place in places)
    return (
        is_placed
        or shutil.which("nvidia-smi") is not None
        or ctypes.util.find_library("cuda") is not None
    )


def why_not_cuda():
    """Why nobody here could run CUDA kernels; empty where somebody may."""
    torch = installed_torch()
    way_out = "SPARSE_FT_CUDA=1 builds them all the same"
    if torch is None:
        return (
            ""
            if has_driver()
            else f"no torch to ask and no NVIDIA driver when this was built ({way_out})"
        )
    build = torch.partition("+")[2]
    if build.startswith(("cpu", "rocm", "xpu")):
        return f"torch {torch}, for which this was built, has no CUDA ({way_out})"
    return ""


def telling(output):
    """The part of a failed step's output that says why.

    CMake's message, a compiler's errors, or else the last lines.
    """
    message = re.search(r"^CMake Error[^\n]*\n((?:[ \t]+[^\n]*\n|\n(?=[ \t\n]))+)", output, re.M)
    if message:
        words = " ".join(message.group(1).split())
        sentence = re.match(r".{20,300}?\.(?= |$)", words)  # what follows is advice, or a log
        return sentence.group() if sentence else words[:300]
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error", line, re.I)] or lines[-3:]
    return " | ".join(errors[:3])


def run(command):
    """Run a build step, showing its output; raise BuildFailed with the telling lines."""
    print("+", *command, flush=True)
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except OSError as error:
        raise BuildFailed(str(error)) from None
    print(done.stdout, flush=True)
    if done.returncode:
        raise BuildFailed(f"{command[0]} exited with {done.returncode}: {telling(done.stdout)}")


class CMakeBuild(build_ext):
    def run(self):
        self.reason = ""
        super().run()

    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # an older one must not outlive a failed build
        try:
            self.build_core(target.parent)
        except BuildFailed as error:
            if os.environ.get("SPARSE_FT_CUDA") == "1":
                raise SystemExit(f"SPARSE_FT_CUDA=1, but the CUDA build failed: {error}") from None
            self.reason, ext.optional = str(error), True
            self.warn_loudly()
        self.write_build_info(target.parent)

    def copy_extensions_to_source(self):
        """For an install in place (pip install -e .)."""
        package = Path(self.get_finalized_command("build_py").get_package_dir("sparse_ft"))
        if self.reason:
            (package / Path(self.get_ext_filename("_C"))).unlink(missing_ok=True)
        super().copy_extensions_to_source()
        self.write_build_info(package)

    def write_build_info(self, package):
        (package / "_build_info.py").write_text(
            '"""Written by setup.py: why this install has no compiled part; empty when it has'
            f' one."""\n\nREASON = {self.reason!r}\n'
        )

    def build_core(self, destination):
        """With CUDA if it is wanted and can be had, else without."""
        wanted, nvcc = os.environ.get("SPARSE_FT_CUDA", ""), find_nvcc()
        if wanted not in ("", "0", "1"):
            raise SystemExit(f"SPARSE_FT_CUDA must be 0, 1 or unset, got {wanted!r}")
        if wanted == "0":
            return self.cmake(destination, cuda_reason="SPARSE_FT_CUDA=0 when this was built")
        if nvcc is None:
            if wanted == "1":
                raise BuildFailed(
                    "nvcc not found (looked at CUDACXX, CUDA_HOME, /usr/local/cuda and PATH)"
                )
            return self.cmake(destination, cuda_reason="nvcc was not found when this was built")
        if wanted == "" and (why_not := why_not_cuda()):
            print(f"CUDA kernels are left out: {why_not}", flush=True)
            return self.cmake(destination, cuda_reason=why_not)
        try:
            return self.cmake(destination, nvcc=nvcc)
        except BuildFailed as error:
            if wanted == "1":
                raise
            print(
                f"WARNING: the CUDA build failed, going on without: {error}",
                file=sys.stderr,
                flush=True,
            )
            return self.cmake(destination, cuda_reason=f"the CUDA build failed: {error}")

    def cmake(self, destination, nvcc=None, cuda_reason=""):
        """Configure and build; a cache that no longer fits (another compiler, CMake or ninja) is
        thrown away once.
        """
        import pybind11

        build = Path(self.build_temp).resolve() / ("cmake-cuda" if nvcc else "cmake")
        options = {
            "CMAKE_BUILD_TYPE": os.environ.get("SPARSE_FT_BUILD_TYPE") or "Release",
            "CMAKE_INSTALL_PREFIX": destination,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "SPARSE_FT_VERSION": version(),
            "SPARSE_FT_WERROR": "ON" if os.environ.get("SPARSE_FT_WERROR") == "1" else "OFF",
            "SPARSE_FT_CPU_VARIANTS": cpu_variants(),
            "SPARSE_FT_CUDA": "ON" if nvcc else "OFF",
            "SPARSE_FT_CUDA_REASON": cuda_reason.replace(";", ","),
            "SPARSE_FT_CUDA_ARCHITECTURES": os.environ.get(
                "SPARSE_FT_CUDA_ARCHITECTURES", "80;90;100"
            ),
        }
        if nvcc:
            options["CMAKE_CUDA_COMPILER"] = nvcc
        generator = []
        if ninja := shutil.which("ninja"):
            generator, options["CMAKE_MAKE_PROGRAM"] = ["-G", "Ninja"], ninja
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            *generator,
            *(f"-D{k}={v}" for k, v in options.items()),
        ]
        fresh = not build.exists()
        try:
            run(configure)
        except BuildFailed:
            shutil.rmtree(build, ignore_errors=True)
            if fresh:
                raise
            run(configure)
        run(
            [
                "cmake",
                "--build",
                str(build),
                "--parallel",
                str(self.parallel or os.cpu_count() or 1),
            ]
        )
        run(["cmake", "--install", str(build)])

    def warn_loudly(self):
        lines = (
            (
                "sparse_ft is being installed WITHOUT its compiled part: every op will run its"
                " plain PyTorch reference."
            ),
            f"Reason: {self.reason}",
            "To have it: install a C++17 compiler (GCC or Clang) and install sparse_ft again.",
        )
        print("", "=" * 100, *lines, "=" * 100, "", sep="\n", file=sys.stderr, flush=True)


setup(ext_modules=[Extension("sparse_ft._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
