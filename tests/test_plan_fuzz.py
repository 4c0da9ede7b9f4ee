"""Files that were damaged at random load or are refused by name, and take no memory that they do
not justify.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "helpers" / "plan_fuzz.py"
COUNT = 1000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_a_thousand_damaged_plans():
    """In a process of its own: a crash, or memory that the system refuses, is that one's end."""
    run = subprocess.run(
        [sys.executable, FUZZ, "0", str(COUNT)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    told = json.loads(run.stdout)
    assert told["loaded"] + told["refused"] == COUNT
    assert told["loaded"] > 50 and told["refused"] > 500  # both are tried
