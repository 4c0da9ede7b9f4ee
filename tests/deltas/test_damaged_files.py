"""Files that were damaged at random, and saves that were killed, never harm a model or the file
that was there.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HELPERS = Path(__file__).parents[1] / "helpers"
COUNT = 2500
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc, fork")


@linux
@pytest.mark.parametrize("first", range(0, 4 * COUNT, COUNT))
def test_ten_thousand_damaged_deltas(first):
    """In a process of its own: a crash, or memory that the system refuses, is that one's end."""
    run = subprocess.run(
        [sys.executable, HELPERS / "delta_fuzz.py", str(first), str(COUNT)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    told = json.loads(run.stdout)
    assert told["refused"] + told["applied"] + told["no model takes it"] == COUNT
    assert told["applied"] > 100 and told["refused"] > 1000  # both are tried


@linux
def test_a_save_that_is_killed_leaves_the_old_file_or_the_new_one(tmp_path):
    run = subprocess.run(
        [sys.executable, HELPERS / "delta_killed.py", tmp_path, "50"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    told = json.loads(run.stdout)
    assert told["old"] + told["new"] == 50 and told["old"] > 5 and told["new"] > 5
    assert told["in the middle"] > 0
