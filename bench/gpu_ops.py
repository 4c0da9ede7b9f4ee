"""Stage `ops`: what the device does at best, then every op against its floor and against the best
that libraries offer.

A case is checked before it is timed: a wrong result is red and has no time.
"""

import argparse
import sys

import torch

from bench import ceilings
from bench import gpu_floors as floors
from bench.cases import Case
from bench.ceilings import Ceilings
from bench.device import compare, count_launches, replays
from bench.errors import error_of
from bench.gpu_cases import cases
from bench.gpu_results import OK, RED, SHORT, Results, why_of
from bench.stats import Times

STAGE = "ops"
MICRO = 1e6


# Arrays far over the cache, copies within half of it, a large product of random numbers.
CEILINGS = {
    "tiny": dict(array=1 << 12, gemm=64, cached=(1 << 10, 2)),
    "full": dict(array=1 << 30, gemm=8192, cached=(3 << 20, 100), most=200),
}


def measure(
    case: Case, device: torch.device, reached: Ceilings, seconds: float, results: Results
) -> None:
    """Rows of one case: ours against its floor and its promise, the others beside."""
    try:
        work = case.make(device)
        error = error_of(work.got(), work.want())
    except Exception as problem:  # noqa: BLE001 - the other cases go on
        return results.add(STAGE, case.name, "ours", RED, note=why_of(problem))
    if not error <= case.tolerance:
        note = f"relative error {error:.2e}, allowed {case.tolerance:.0e}"
        return results.add(STAGE, case.name, "ours", RED, note=note)
    variants, eager = replays(work.variants, device)
    times = compare(variants, device, seconds)
    bound = floors.floor(case.phases, reached)
    launches = count_launches(work.launches or work.variants["ours"], device)
    status, kept = verdict(case, times, bound, reached, launches)
    note = f"error {error:.1e}{kept}"
    for name, t in times.items():
        ours = name == "ours"
        own = dict(status=status, note=note) if ours else {}
        # Elsewhere sizes are tiny, and floors those of another kind of device.
        if ours and device.type == "cuda":
            own |= dict(floor=bound * MICRO, fraction=bound / t.p50)
        if name in eager:
            own["note"] = f"{own.get('note', '')} cannot be captured, timed eagerly".strip()
        ratio = None if ours else t.p50 / times["ours"].p50
        results.add(STAGE, case.name, name, ratio=ratio, **t.fields(MICRO, "value"), **own)


def verdict(
    case: Case, times: dict[str, Times], bound: float, reached: Ceilings, launches: int | None
) -> tuple[str, str]:
    """(status, what to say) of the promise of a case and of its launches."""
    expected = floors.launches(case.phases)
    said = "" if launches is None else f", {launches} launches, {expected} expected"
    if case.promise is None or launches is None:
        return OK, said
    line, allowed = case.promise({name: t.p50 for name, t in times.items()}, bound, reached)
    is_fast = times["ours"].p50 <= allowed
    # Of the optimiser the number of launches is promised, whatever the number of tensors.
    is_in_few = not case.name.startswith("masked_adamw_") or launches <= expected
    said += f"; {line}: {'kept' if is_fast else f'at most {allowed * MICRO:.1f} us'}"
    return (OK if is_fast and is_in_few else SHORT), said


def measure_ceilings(device: torch.device, size: str, seconds: float, results: Results) -> Ceilings:
    """What the device does at best, and the least that a replay of one kernel takes."""
    settings = dict(dtypes=("bfloat16",), device=device, **CEILINGS[size])
    reached = ceilings.measure(3 * seconds, **settings)
    product = reached.gemm["bfloat16"]
    for name, rate in (("copy", reached.copy), ("l2", reached.l2), ("gemm", product)):
        unit = "TFLOP/s" if name == "gemm" else "TB/s"
        results.add(STAGE, f"ceiling {name}", value=rate / 1e12, unit=unit)
    number = torch.zeros((), device=device)
    alone, _ = replays({"launch": lambda: number.add_(1)}, device)
    least = compare(alone, device, seconds)["launch"]
    results.add(STAGE, "ceiling launch", **least.fields(MICRO, "value"))
    return reached


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--size", default="full", choices=("tiny", "full"))
    parser.add_argument("--seconds", default=0.25, type=float, help="for each case")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    results = Results(device=str(given.device), torch=torch.__version__)
    reached = measure_ceilings(given.device, given.size, given.seconds, results)
    for case in cases(given.size):
        if given.only in case.name:
            measure(case, given.device, reached, given.seconds, results)
    if given.only in "tiles":
        from bench.gpu_tiles import sweep

        sweep(given.device, given.size, given.seconds, results)
    return 0  # what is red has a row


if __name__ == "__main__":
    sys.exit(main())
