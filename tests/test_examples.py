"""The examples do what they say, run as a user runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.skipif(sys.platform != "linux", reason="the cap is Linux's")
def test_twice_the_batch_fits_under_the_same_cap():
    pytest.importorskip("transformers")
    ran = subprocess.run(
        [sys.executable, EXAMPLES / "twice_the_batch.py"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    last = ran.stdout.splitlines()[-1].split()
    full, ours = int(last[3]), int(last[-3])
    assert ours >= 2 * full > 0


@pytest.mark.skipif(sys.platform != "linux", reason="the cap is Linux's")
def test_a_cap_below_one_batch_is_not_called_a_success():
    pytest.importorskip("transformers")
    ran = subprocess.run(
        [sys.executable, EXAMPLES / "twice_the_batch.py", "20"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 1 and "0 sequences" in ran.stdout


def test_an_engine_in_another_process_holds_the_trainers_bits():
    ran = subprocess.run(
        [sys.executable, EXAMPLES / "async_engine.py", "8"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    *steps, last = ran.stdout.splitlines()
    assert last == "engine and trainer hold the same bits" and len(steps) == 8
    assert all(float(line.split()[-3]) <= 2 for line in steps)
