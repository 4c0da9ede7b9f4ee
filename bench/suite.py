"""What one benchmark file offers, and the run of it.

Cases × threads × providers in, records and promises out.

A file bench_<op>.py has OP, TESTS (run first), `cases(size)` and `providers(case)` -> {name: () ->
callable}, one named "ours". It may have `bound(case, ceilings)` (seconds at the machine's limit, or
None) and `musts(found)`. Where there is more than times: `extra(size, threads)`, or
`apart(size, threads)` for what starts processes of its own; where a case is not providers side by
side: its own `run_case(case, found)`. WHOLE_STEPS: its cases are training steps, timed under the
allocator as users have it.
"""

import gc
import importlib
from dataclasses import dataclass, field

import torch

from bench import ceilings, machine, memory
from bench.harness import interleave
from bench.records import Must, Record
from bench.stats import Times, paired_ratio, quantile

OURS = "ours"
SIZES = ("tiny", "quick", "full")
MILLI = 1e3  # in a second


class Unavailable(Exception):
    """A provider that cannot run here; the message says why and stands in its row."""


@dataclass
class Found:
    """What one op's run at one thread count found, by case name."""

    threads: int
    ceilings: ceilings.Ceilings
    samples: dict = field(default_factory=dict)  # {case name: {provider: {round: seconds}}}
    bounds: dict = field(default_factory=dict)  # {case name: seconds}
    cases: dict = field(default_factory=dict)

    def ratio(self, case, slow, fast=OURS):
        """Time of `slow` over time of `fast`, from paired rounds; None where either is missing."""
        samples = self.samples.get(case, {})
        return (
            paired_ratio(samples[slow], samples[fast])
            if samples.get(slow) and samples.get(fast)
            else None
        )

    def median(self, case, provider=OURS):
        samples = self.samples.get(case, {}).get(provider)
        return quantile(samples.values(), 0.5) if samples else None

    def of_bound(self, case, provider=OURS):
        """Share of the roofline that a provider reaches: the bound's time over its own."""
        taken, bound = self.median(case, provider), self.bounds.get(case)
        return bound / taken if taken and bound else None


def run_case(op, case, providers, found):
    """Time the providers of one case against one another; returns its records."""
    variants, absent = {}, {}
    for name, make in providers.items():
        try:
            variants[name] = make()
        except Unavailable as why:
            absent[name] = str(why)
    disturbed = {}
    samples = found.samples[case.name] = interleave(variants, case.seconds, disturbed=disturbed)
    about = dict(
        op=op,
        case=case.name,
        kind=case.kind,
        density=case.density,
        dtype=case.dtype,
        threads=found.threads,
    )
    bound = found.bounds.get(case.name)
    records = []
    for name, rounds in samples.items():
        ratio = found.ratio(case.name, name) if name != OURS else None
        figures = Times.of(rounds.values()).fields(MILLI)
        limit = MILLI * bound if bound else None
        row = dict(provider=name, ratio=ratio, disturbed=disturbed[name], bound=limit)
        records.append(Record(**row, **figures, **about))
    return records + [Record(provider=name, note=why, **about) for name, why in absent.items()]


def run(module, size, threads, tick=lambda seconds, what: None):
    """([Record], [Must]) of one benchmark file at each thread count. tick(seconds, what): told
    after each case.
    """
    records, musts = [], []
    before = torch.get_num_threads()
    dtypes = ("float32", "bfloat16") if getattr(module, "GEMM_BF16", False) else ("float32",)
    small = {"seconds": 0.01, "array": 1 << 12, "gemm": 32} if size == "tiny" else {}
    try:
        for number in threads:
            torch.set_num_threads(number)
            found = Found(number, ceilings.measure(dtypes=dtypes, **small))
            for case in module.cases(size):
                tick(0, case.name)
                found.cases[case.name] = case
                found.bounds[case.name] = getattr(module, "bound", no_bound)(case, found.ceilings)
                if hasattr(module, "run_case"):
                    records += module.run_case(case, found)
                else:
                    records += run_case(module.OP, case, module.providers(case), found)
                gc.collect()
                tick(case.seconds, case.name)
            if any(found.bounds.values()):
                found.ceilings = found.ceilings.best(ceilings.measure(dtypes=dtypes, **small))
            records += ceiling_records(module.OP, found)
            more_records, more_musts = (
                module.extra(size, number) if hasattr(module, "extra") else ([], [])
            )
            records += more_records
            musts += [*musts_of(module, found), *more_musts]
    finally:
        torch.set_num_threads(before)
    return records, musts


def no_bound(case, ceilings):
    return None


def musts_of(module, found):
    """[Must] of what was found; a file without promises has none."""
    return module.musts(found) if hasattr(module, "musts") else []


def module_of(op):
    return importlib.import_module(f"bench.bench_{op}")


def run_alone(op, size, threads, tick):
    """`run` at one thread count, in a process of its own.

    Nothing that another op or count leaves behind is in the figures.
    """
    module = module_of(op)
    if not getattr(module, "WHOLE_STEPS", False):
        memory.keep_freed_blocks()
    return run(module, size, [threads], tick)


def ceiling_records(op, found):
    rates = {
        "copy": (found.ceilings.copy / 1e9, "GB/s"),
        "triad": (found.ceilings.triad / 1e9, "GB/s"),
    }
    rates |= {f"GEMM {name}": (rate / 1e9, "GFLOP/s") for name, rate in found.ceilings.gemm.items()}
    whose = {f"GEMM {name}": f"by {who}" for name, who in found.ceilings.by.items()}
    return [
        Record(
            op=op,
            case="ceilings",
            provider=name,
            threads=found.threads,
            unit=unit,
            p50=rate,
            note=whose.get(name, ""),
        )
        for name, (rate, unit) in rates.items()
    ]


def must(found, op, key, line, measured, target, at_least=True, note="", unmeasured=""):
    measured = None if unmeasured else measured
    return Must(op, key, line, found.threads, measured, target, at_least, note, unmeasured)


def without_bf16():
    """Why a promise about bf16 products cannot be judged here, where torch makes them in a plain
    loop; empty elsewhere.
    """
    return "" if machine.has_bf16() else f"no bf16 instructions here ({machine.isa()})"
