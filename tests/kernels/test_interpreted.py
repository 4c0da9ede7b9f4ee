"""Runs the interpreted_*.py files, each in a process of its own: triton decides at import whether
it interprets.
"""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
FOLDER = pathlib.Path(__file__).parent
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("mode", ["interpreter", pytest.param("device", marks=NO_GPU, id="cuda")])
@pytest.mark.parametrize(
    "stem",
    sorted(path.stem.removeprefix("interpreted_") for path in FOLDER.glob("interpreted_*.py")),
)
def test_kernels_in_their_own_process(stem, mode, record_property):
    paths = [str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    environment["TRITON_INTERPRET"] = "1" if mode == "interpreter" else "0"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=short",
        "--import-mode=importlib",
        "-p",
        "no:cacheprovider",
    ]
    command += [
        "-o",
        "addopts=",
        "-o",
        "python_files=interpreted_*.py",
        str(FOLDER / f"interpreted_{stem}.py"),
    ]
    result = subprocess.run(command, env=environment, cwd=FOLDER, capture_output=True, text=True)
    last = result.stdout.strip().splitlines()[-1] if result.stdout.strip() else "no output"
    record_property("kernels", f"{stem} ({mode}): {last}")
    assert result.returncode == 0, f"{result.stdout[-8000:]}\n{result.stderr[-2000:]}"
    assert re.match(r"\d+ passed", last) and "skipped" not in last, last
