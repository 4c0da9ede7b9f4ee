"""SIGKILL in the middle of a reselection, or of the checkpoint beside it."""

import json
import subprocess
import sys
from pathlib import Path

from helpers import reselect_killed


def test_killed_anywhere_and_resumed_it_ends_with_the_same_bits(tmp_path):
    """At a line of its Python, and from outside at any moment: weights, fp32 masters, moments,
    ages, origins, plan.
    """
    program = Path(reselect_killed.__file__)
    ran = subprocess.run(
        [sys.executable, program, tmp_path], capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told.pop("wrong") == []
    assert told == {"reselection": 10, "checkpoint": 6}
