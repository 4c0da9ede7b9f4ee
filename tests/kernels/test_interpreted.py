"""Runs the interpreted_*.py files, some in a process of their own: triton decides at import whether
it interprets, and a process for each file would import torch and triton fourteen times.
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


STEMS = {path.stem.removeprefix("interpreted_") for path in FOLDER.glob("interpreted_*.py")}
PROCESSES = {
    "blocks": ["selected_wgrad_blocks", "selected_wgrad_grouped"],
    "wgrad": ["selected_wgrad", "selected_wgrad_again", "selected_wgrad_entries"],
    "moves": ["gather_selected", "scatter_selected", "masked_adamw"],
}
# Each of the others reads or writes every element once.
PROCESSES["streams"] = sorted(STEMS - set(sum(PROCESSES.values(), [])))


def test_no_process_names_a_file_that_is_not_there():
    assert sorted(sum(PROCESSES.values(), [])) == sorted(STEMS)


@pytest.mark.parametrize("mode", ["interpreter", pytest.param("device", marks=NO_GPU, id="cuda")])
@pytest.mark.parametrize("process", PROCESSES)
def test_kernels_in_their_own_process(process, mode, record_property):
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
        *(str(FOLDER / f"interpreted_{stem}.py") for stem in PROCESSES[process]),
    ]
    result = subprocess.run(command, env=environment, cwd=FOLDER, capture_output=True, text=True)
    last = result.stdout.strip().splitlines()[-1] if result.stdout.strip() else "no output"
    record_property("kernels", f"{process} ({mode}): {last}")
    assert result.returncode == 0, f"{result.stdout[-8000:]}\n{result.stderr[-2000:]}"
    assert re.match(r"\d+ passed", last) and "skipped" not in last, last
