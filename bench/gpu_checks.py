"""Repeats of every op on a device: the same bits each time, whatever unwritten memory held.

And small ones, for a memory checker.

--plant race | overrun runs a kernel that is wrong on purpose: a check that stays green on it sees
nothing.
"""

import argparse
import sys

import torch

from bench.gpu_cases import cases
from bench.gpu_results import OK, RED, Results

REPEATS = 20
SEEN = 42  # the status that says that a check saw what was planted


def poison(device):
    """Leave NaN where the allocator will hand memory out again."""
    junk = [torch.full((1 << power,), float("nan"), device=device) for power in range(8, 22)]
    del junk


def differing(make, device, repeats):
    """How many of the repeats gave other bits than the first."""
    first, differ = None, 0
    for _ in range(repeats):
        poison(device)
        bits = [
            t.detach().clone().view(torch.uint8) if t.dim() else t.detach().clone() for t in make()
        ]
        first = bits if first is None else first
        differ += any(not torch.equal(a, b) for a, b in zip(first, bits))
    return differ


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--size", default="tiny", choices=("tiny", "full"))
    parser.add_argument("--repeats", default=REPEATS, type=int)
    parser.add_argument(
        "--stage", default="test", help="the stage in whose name results are written"
    )
    parser.add_argument("--plant", choices=("race", "overrun"))
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)  # `empty` then holds NaN
    if given.plant:
        from bench.gpu_planted import planted

        return SEEN if differing(planted(given.plant), given.device, given.repeats) else 0
    results = Results(device=str(given.device))
    for case in cases(given.size):
        try:
            work = case.make(given.device)
            differ = differing(work.again or work.got, given.device, given.repeats)
            note = (
                f"{differ} of {given.repeats} repeats have other bits"
                if differ
                else f"{given.repeats} times the same bits"
            )
        except Exception as problem:  # noqa: BLE001 - the other cases go on
            differ, note = 1, f"{type(problem).__name__}: {str(problem).splitlines()[0][:200]}"
        results.add(given.stage, case.name, "repeats", status=RED if differ else OK, note=note)
    return int(results.red)


if __name__ == "__main__":
    sys.exit(main())
