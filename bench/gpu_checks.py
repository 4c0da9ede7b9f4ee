"""Every op on a device against its reference, and against itself: the same bits each time, whatever
unwritten memory held.

And small ones, for a memory checker.

--plant race | overrun runs a kernel that is wrong on purpose, last: a check that stays green on it
sees nothing.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import torch

from bench.cases import Case
from bench.errors import error_of
from bench.gpu_cases import Work, cases
from bench.gpu_memcheck import PLANTED
from bench.gpu_results import OK, RED, Results, why_of

REPEATS = 20


def poison(device: torch.device) -> None:
    """Leave NaN where the allocator will hand memory out again."""
    junk = [torch.full((1 << power,), float("nan"), device=device) for power in range(8, 22)]
    del junk


def differing(
    make: Callable[[], Sequence[torch.Tensor]], device: torch.device, repeats: int
) -> int:
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


def check(case: Case, device: torch.device, repeats: int) -> tuple[str, str]:
    """(status, note) of a case: right, and `repeats` times the same."""
    poison(device)
    work: Work = case.make(device)
    error = error_of(work.got(), work.want())
    if not error <= case.tolerance:
        return RED, f"relative error {error:.2e}, allowed {case.tolerance:.0e}"
    differ = differing(work.again or work.got, device, repeats)
    if differ:
        return RED, f"{differ} of {repeats} repeats have other bits"
    return OK, f"error {error:.1e}, {repeats} times the same bits"


def plant(what: str, stage: str, device: torch.device, results: Results) -> None:
    """A race must give other bits; an overrun is for the memory checker around this process."""
    from bench.gpu_planted import planted

    if what == "overrun":
        print(PLANTED, flush=True)
        planted(what)()
        return
    seen = differing(planted(what), device, REPEATS)
    note = f"a planted {what} is seen" if seen else f"a planted {what} was not seen"
    results.add(stage, note, status=OK if seen else RED)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--size", default="tiny", choices=("tiny", "full"))
    parser.add_argument("--repeats", default=REPEATS, type=int)
    parser.add_argument("--stage", default="repeats", help="in whose name results are written")
    parser.add_argument("--plant", default="race", choices=("race", "overrun"))
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)  # `empty` then holds NaN
    results = Results(device=str(given.device))
    for case in cases(given.size):
        try:
            status, note = check(case, given.device, given.repeats)
        except Exception as problem:  # noqa: BLE001 - the other cases go on
            status, note = RED, why_of(problem)
        results.add(given.stage, case.name, "repeats", status=status, note=note)
    if given.device.type == "cuda":
        plant(given.plant, given.stage, given.device, results)
    return 0  # what is red has a row


if __name__ == "__main__":
    sys.exit(main())
