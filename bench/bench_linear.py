"""SelectiveLinear against nn.Linear, SelectiveAdamW against fused AdamW: the forward, and the host
time that a call adds.
"""

import torch
from torch import nn

import sparse_ft as sft
from bench.cases import Case, selection
from bench.stats import median
from bench.suite import OURS, must

OP = "linear"
TESTS = [
    "tests/nn/test_linear.py",
    "tests/test_functional.py",
    "tests/optim/test_selective_adamw.py",
]
FORWARD, CALL = "forward, 1024² × 512 tokens", "host time of a forward"
ADDED = "host time that SelectiveLinear adds to a forward"
BOTH = "host time of forward and backward"
STEPS = (7, 112)  # weights of one and of sixteen Llama layers
KINDS = ("columns", "entries")


def cases(size):
    seconds = 0.02 if size == "tiny" else 1.5
    shape, tokens = ((16, 16), 4) if size == "tiny" else ((1024, 1024), 512)
    host = [
        Case(name, "host", 0.25, shape=(8, 8), tokens=1, seconds=seconds) for name in (CALL, BOTH)
    ]
    steps = [Case(_step_name(n), "step", n, shape=(8, 8), seconds=seconds) for n in STEPS]
    return [
        Case(FORWARD, "forward", 0.01, shape=shape, tokens=tokens, seconds=3 * seconds),
        *host,
        *steps,
    ]


def _step_name(count):
    return f"host time of an optimiser step, {count} weights"


def providers(case):
    if case.kind == "step":
        return _steps(case)
    input = torch.randn(case.tokens, case.shape[1]).requires_grad_()
    linear = nn.Linear(*case.shape[::-1])
    frozen = nn.Linear(*case.shape[::-1]).requires_grad_(False)

    def selective(kind):
        chosen = selection(kind, case.shape, case.density)
        return sft.nn.SelectiveLinear.from_linear(nn.Linear(*case.shape[::-1]), chosen)

    def call(module):
        if case.name != BOTH:
            return lambda: module(input)
        gradient = torch.ones(case.tokens, case.shape[0])
        return lambda: module(input).backward(gradient)

    return {
        OURS: lambda: call(selective("columns")),
        "ours, entries": lambda: call(selective("entries")),
        "nn.Linear": lambda: call(linear),
        "nn.Linear, frozen": lambda: call(frozen),
    }


def _steps(case):
    """Steps on many tiny weights: next to nothing but host time."""
    count = int(case.density)

    def grown(parameters):
        for p in parameters:
            p.grad = torch.ones_like(p)
        return parameters

    def ours():
        chosen = selection("columns", case.shape, 0.25)
        modules = [
            sft.nn.SelectiveLinear.from_linear(nn.Linear(*case.shape[::-1], bias=False), chosen)
            for _ in range(count)
        ]
        optimizer = sft.SelectiveAdamW(grown([m.values for m in modules]))
        return lambda: optimizer.step() or modules

    def theirs(**keywords):
        return torch.optim.AdamW(
            grown([nn.Parameter(torch.randn(8, 2)) for _ in range(count)]), **keywords
        ).step

    return {
        OURS: ours,
        "AdamW fused": lambda: theirs(fused=True),
        "AdamW foreach": lambda: theirs(foreach=True),
    }


def added_microseconds(found, case, provider=OURS, baseline="nn.Linear"):
    """Median over paired rounds of the time that `provider` takes more than `baseline`."""
    samples = found.samples.get(case)
    if not samples:
        return None
    return 1e6 * median(
        [
            samples[provider][r] - samples[baseline][r]
            for r in samples[provider].keys() & samples[baseline].keys()
        ]
    )


def musts(found):
    text = f"{FORWARD}: time of SelectiveLinear (1 % columns) over nn.Linear"
    over = found.ratio(FORWARD, OURS, "nn.Linear")
    result = [must(found, OP, "forward.over_linear", text, over, 1.02, at_least=False)]
    for kind, provider in (("columns", OURS), ("entries", "ours, entries")):
        added = added_microseconds(found, CALL, provider)
        text = f"{ADDED}, µs ({kind})"
        result.append(must(found, OP, f"added_host_us.{kind}", text, added, 12, at_least=False))
    return result
