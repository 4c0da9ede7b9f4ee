"""Without the compiled part the package works, and says once at import, and in its diagnosis, what
is missing and why.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REASON = "cmake exited with 1: No CMAKE_CXX_COMPILER could be found."
HIDDEN = f"""
import sys, types
sys.modules["sparse_ft._C"] = None
sys.modules["sparse_ft._build_info"] = types.SimpleNamespace(REASON={REASON!r})
"""


def run(script: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
    return subprocess.run(
        [sys.executable, "-c", HIDDEN + script],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


def test_one_warning_at_import_says_why_and_the_diagnosis_says_it_too():
    done = run(
        "import sparse_ft, sparse_ft.nn; from sparse_ft.module_command import main; main([])"
    )
    assert done.returncode == 0, done.stderr
    told = (
        "RuntimeWarning: sparse_ft has no compiled part: every op runs in plain PyTorch, which is"
        " slower."
    )
    assert done.stderr.count(told) == 1 and done.stderr.count(REASON) == 1, done.stderr
    assert f"compiled part: none ({REASON})" in done.stdout
    served = [
        line.split() for line in done.stdout.splitlines() if line.startswith("gather_selected")
    ]
    assert ["gather_selected", "cpu", "reference"] in [line[:3] for line in served]


def test_with_the_compiled_part_nothing_is_said():
    pytest.importorskip("sparse_ft._C")
    done = subprocess.run(
        [sys.executable, "-c", "import sparse_ft"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "compiled part" not in done.stderr
