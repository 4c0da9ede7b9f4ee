"""csrc/rounding.h over the numbers that matter, in a program of its own."""

import shutil
import subprocess
from pathlib import Path

import pytest

CXX = shutil.which("g++") or shutil.which("clang++")


@pytest.mark.skipif(CXX is None, reason="no C++ compiler")
def test_split_join_and_rounding_by_chance(tmp_path):
    program = tmp_path / "rounding"
    source = Path(__file__).parent / "rounding.cpp"
    subprocess.run([CXX, "-std=c++17", "-O2", str(source), "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0 and "what it should be" in done.stdout, done.stderr
    planted = subprocess.run([program, "plant"], capture_output=True, text=True)
    assert planted.returncode == 2 and "another number" in planted.stderr
