"""Stage `ops`: what the device does at best, then every op against its floor and against the best
that libraries offer.

A case is checked before it is timed: a wrong result is red and has no time.
"""

import argparse
import sys

import torch

from bench import ceilings
from bench import gpu_floors as floors
from bench.device import compare, count_launches
from bench.gpu_cases import cases
from bench.gpu_results import OK, RED, SHORT, Results

MICRO = 1e6


# Arrays far over the cache, copies within half of it, a large product of random numbers.
CEILINGS = {
    "tiny": dict(array=1 << 12, gemm=64, cached=(1 << 10, 2)),
    "full": dict(array=1 << 30, gemm=8192, cached=(3 << 20, 100), most=200),
}


def error_of(got, want):
    """The largest relative error of a tensor, in norm; infinite where something is not finite."""

    def error(a, b):
        a, b = a.double(), b.double()
        return ((a - b).norm() / b.norm().clamp(min=1e-30)).nan_to_num(float("inf")).item()

    return max(error(a, b) for a, b in zip(got, want, strict=True))


def measure(case, device, reached, seconds, results):
    """Rows of one case: ours against its floor and its promise, the others beside."""
    bound = floors.floor(case.phases, reached)
    try:
        work = case.make(device)
        error = error_of(work.got(), work.want())
    except Exception as problem:  # noqa: BLE001 - the other cases go on
        return results.add(
            "ops",
            case.name,
            "ours",
            RED,
            note=f"{type(problem).__name__}: {str(problem).splitlines()[0][:200]}",
        )
    if not error <= case.tolerance:
        return results.add(
            "ops",
            case.name,
            "ours",
            RED,
            note=f"relative error {error:.2e}, allowed {case.tolerance:.0e}",
        )
    times = compare(work.variants, device, seconds)
    launches, most = (
        count_launches(work.launches or work.variants["ours"], device),
        floors.launches(case.phases),
    )
    status, note = (
        OK,
        f"error {error:.1e}"
        + ("" if launches is None else f", {launches} launches, {most} expected"),
    )
    if case.promise is not None and device.type == "cuda":
        line, allowed = case.promise({name: t.p50 for name, t in times.items()}, bound, reached)
        kept, in_one = (
            times["ours"].p50 <= allowed,
            not case.name.startswith("masked_adamw_") or (launches or 0) <= most,
        )
        note = f"{note}; {line}: {'kept' if kept else f'at most {allowed * MICRO:.1f} us'}"
        status = OK if kept and in_one else SHORT
    for name, t in times.items():
        ours = name == "ours"
        own = dict(status=status, note=note) if ours else {}
        # Elsewhere sizes are tiny, and floors those of another kind of device.
        if ours and device.type == "cuda":
            own |= dict(floor=bound * MICRO, fraction=bound / t.p50)
        ratio = None if ours else t.p50 / times["ours"].p50
        results.add("ops", case.name, name, ratio=ratio, **t.fields(MICRO, "value"), **own)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--size", default="full", choices=("tiny", "full"))
    parser.add_argument("--seconds", default=1.0, type=float, help="for each case")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    results = Results(device=str(given.device), torch=torch.__version__)
    settings = dict(dtypes=("bfloat16",), device=given.device, **CEILINGS[given.size])
    reached = ceilings.measure(3 * given.seconds, **settings)
    product = reached.gemm["bfloat16"]
    for name, rate in (("copy", reached.copy), ("l2", reached.l2), ("gemm", product)):
        unit = "TFLOP/s" if name == "gemm" else "TB/s"
        results.add("ops", f"ceiling {name}", value=rate / 1e12, unit=unit)
    for case in cases(given.size):
        if given.only in case.name:
            measure(case, given.device, reached, given.seconds, results)
    if given.only in "tiles":
        from bench.gpu_tiles import sweep

        sweep(given.device, given.size, given.seconds, results)
    return int(results.red)


if __name__ == "__main__":
    sys.exit(main())
