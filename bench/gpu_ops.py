"""Stage `ops`: what the device does at best, then every op against its floor and against the best that libraries offer.

A case is checked before it is timed: a wrong result is red and has no time.
"""

import argparse
import sys

import torch

from bench import gpu_floors as floors
from bench.gpu_cases import cases
from bench.gpu_results import OK, RED, SHORT, Results
from bench.gpu_timing import captured, compare, count_launches

MICRO = 1e6


def ceilings(device, size, seconds):
    """Copy of arrays far over the cache, copies within half of it from one graph (gaps between them included), a large product
    of random numbers."""
    tiny = size == "tiny"
    many, few, side, times = (1 << 12, 1 << 10, 64, 2) if tiny else (1 << 30, 3 << 20, 8192, 100)
    a, b, c, d = (torch.randn(n, device=device) for n in (many, many, few, few))
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    inside = captured(lambda: c.copy_(d), device, times)
    calls = {"copy": lambda: a.copy_(b), "l2": inside, "gemm": lambda: left.T @ right}
    took = {name: compare({name: call}, device, seconds)[name].p50 for name, call in calls.items()}
    return floors.Ceilings(2 * a.nbytes / took["copy"], times * 2 * c.nbytes / took["l2"], 2 * side**3 / took["gemm"])


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
            "ops", case.name, "ours", RED, note=f"{type(problem).__name__}: {str(problem).splitlines()[0][:200]}"
        )
    if not error <= case.tolerance:
        return results.add("ops", case.name, "ours", RED, note=f"relative error {error:.2e}, allowed {case.tolerance:.0e}")
    times = compare(work.variants, device, seconds)
    launches, most = count_launches(work.launches or work.variants["ours"], device), floors.launches(case.phases)
    status, note = OK, f"error {error:.1e}" + ("" if launches is None else f", {launches} launches, {most} expected")
    if case.promise is not None and device.type == "cuda":
        line, allowed = case.promise({name: t.p50 for name, t in times.items()}, bound, reached)
        kept, in_one = times["ours"].p50 <= allowed, not case.name.startswith("masked_adamw_") or (launches or 0) <= most
        note = f"{note}; {line}: {'kept' if kept else f'at most {allowed * MICRO:.1f} us'}"
        status = OK if kept and in_one else SHORT
    for name, t in times.items():
        ours = name == "ours"
        own = dict(status=status, note=note) if ours else {}
        if ours and device.type == "cuda":  # elsewhere sizes are tiny, and floors those of another kind of device
            own |= dict(floor=bound * MICRO, fraction=bound / t.p50)
        spread = dict(value=t.p50 * MICRO, p20=t.p20 * MICRO, p80=t.p80 * MICRO, rounds=t.rounds)
        results.add("ops", case.name, name, ratio=None if ours else t.p50 / times["ours"].p50, **spread, **own)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--size", default="full", choices=("tiny", "full"))
    parser.add_argument("--seconds", default=1.0, type=float, help="for each case")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    results = Results(device=str(given.device), torch=torch.__version__)
    reached = ceilings(given.device, given.size, given.seconds)
    for name, unit in (("copy", "TB/s"), ("l2", "TB/s"), ("gemm", "TFLOP/s")):
        results.add("ops", f"ceiling {name}", value=getattr(reached, name) / 1e12, unit=unit)
    for case in cases(given.size):
        if given.only in case.name:
            measure(case, given.device, reached, given.seconds, results)
    if given.only in "tiles":
        from bench.gpu_tiles import sweep

        sweep(given.device, given.size, given.seconds, results)
    return int(results.red)


if __name__ == "__main__":
    sys.exit(main())
