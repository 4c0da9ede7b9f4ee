"""Stage `memcheck`: every op on tiny tensors under compute-sanitizer, and a planted overrun last.

What the checker reports before the plant is an error of ours; if it reports nothing after it, it
sees nothing. Both run in one process, for its start takes most of the time.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from bench import gpu_children
from bench.gpu_calls import CAUGHT, ROOT
from bench.gpu_results import OK, RED, SKIPPED, Results

STAGE = "memcheck"
CHECKER = ("compute-sanitizer", "--tool", "memcheck", "--target-processes", "application-only")
CHECKS = ("-m", "bench.gpu_checks", "--size", "tiny", "--repeats", "1", "--stage", STAGE)
PLANTED = "== from here on an overrun is planted =="  # what gpu_checks prints before it
PREFIX = "========= "
# Not "Program hit": torch tries calls that a driver may refuse.
ERRORS = ("Invalid", "Misaligned", "Out-of-range")


def errors(lines: Sequence[str]) -> list[str]:
    """What the checker says was wrong."""
    said = [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]
    return [line for line in said if line.startswith(ERRORS)]


def verdict(output: str) -> tuple[str, str]:
    """(status, note) of all that the checked process and its checker printed."""
    before, marker, after = output.partition(PLANTED)
    found = errors(before.splitlines())
    if found:
        return RED, f"{len(found)} errors, the first: {found[0]}"
    if not marker:
        return RED, "the checks did not come to their end"
    if not errors(after.splitlines()):
        return RED, "a planted overrun was not seen"
    return OK, "no errors, and a planted overrun is seen"


def main(arguments: Sequence[str] = ()) -> int:
    results = Results()
    if shutil.which(CHECKER[0]) is None:
        results.add(STAGE, f"{CHECKER[0]} is not installed", status=SKIPPED)
        return 0
    # Or overruns end in memory that the allocator holds.
    given = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    device = ["--device", os.environ.get("DEVICE", "cuda")]
    command = [*CHECKER, sys.executable, *CHECKS, *device, "--plant", "overrun"]
    child = gpu_children.start(
        command, cwd=ROOT, env=given, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output = ""
    for line in child.stdout:
        print(line, end="", flush=True)
        output += line
    child.wait()
    status, note = verdict(output)
    results.add(STAGE, "the checker", status=status, note=note)
    return CAUGHT if errors(output.partition(PLANTED)[0].splitlines()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
