"""No figure without its green test.

The tests of an op run before its benchmark, in the same command.
"""

import os
import subprocess
import sys
from importlib.util import find_spec

from bench.machine import ROOT

# These compile; what they prove, that torch may compile and trace an op, no figure rests on.
LEFT_OUT = "not opcheck and not compile"


class Red(Exception):
    """The tests of an op fail, so it is not measured."""


def require_green(op, tests, jobs=2):
    """Run the test files of `op` (paths from the root).

    Raises Red with the end of pytest's output unless all pass.
    """
    absent = [test for test in tests if not (ROOT / test).exists()]
    if absent:
        raise Red(f"{op}: its tests are missing ({', '.join(absent)}), so it is not measured")
    if not tests:
        return "its tests passed before"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", LEFT_OUT]
    if find_spec("xdist"):
        command += ["-n", str(jobs)]
    command += tests
    done = subprocess.run(
        command,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )
    if done.returncode:
        tail = "\n".join(done.stdout.strip().splitlines()[-12:])
        raise Red(f"{op}: its tests are red, so it is not measured.\n{tail}")
    return done.stdout.strip().splitlines()[-1]
