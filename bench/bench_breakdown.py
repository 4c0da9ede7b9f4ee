"""Where a step's time goes: forward, dgrad, wgrad, optimiser, sync, the host's share.

That of a lean step too, part by part.
"""

import functools
import time

import torch

import sparse_ft as sft
from bench import bench_lean, step_parts, training
from bench.cases import Case
from bench.harness import order_of
from bench.records import Record
from bench.stats import Times
from bench.suite import MILLI, OURS

OP = "breakdown"
WHOLE_STEPS = True
TESTS = [
    "tests/nn/test_linear.py",
    "tests/test_functional.py",
    "tests/optim/test_selective_adamw.py",
]
ONLY_MOST_THREADS = True
WAYS = {  # name: arguments of training.prepare
    "frozen": dict(method="frozen"),
    "full, fused AdamW": dict(method="full"),
    "LoRA r=8, fused AdamW": dict(method="LoRA r=8"),
    "ours, 1 % columns": dict(method="ours"),
    "ours, 1 % columns, fused AdamW": dict(method="ours", fused=True),
    "ours, 1 % entries": dict(method="ours", structure="entries"),
}
PHASES = ("forward", "dgrad", "wgrad", "optimiser", "sync", "step", "host")
MODELS = {  # case: (class, shape, shape of its tiny twin, batch, tokens)
    "Llama-1B layer, 2 × 512": (
        training.LlamaLayer,
        training.LLAMA_1B,
        training.TINY_LLAMA,
        2,
        512,
    ),
    "MiniLM, 32 × 64": (training.MiniLM, training.MINILM, training.TINY_MINILM, 32, 64),
}
CONVNET = "ResNet, frozen"  # of bench_lean: the parts of its lean step alone


def cases(size):
    return [
        Case(
            name,
            "step",
            training.DENSITY,
            tokens=0 if size == "tiny" else 1,
            seconds=0.1 if size == "tiny" else seconds,
        )
        for name, seconds in (*((name, 10.0) for name in MODELS), (CONVNET, 1.0))
    ]


def run_case(case, found):
    """A record a phase and way.

    dgrad is the all-frozen model's backward, wgrad what a way's own backward takes beyond it; host
    is the whole step on a twin of a few features and tokens: Python, autograd and dispatch, next to
    no arithmetic.
    """
    if case.name == CONVNET:
        return _convnet_parts(case, found)
    cls, shape, twin, batch, tokens = MODELS[case.name]
    steps = {
        name: _step(cls, shape if case.tokens else twin, how, batch, tokens if case.tokens else 2)
        for name, how in WAYS.items()
    }
    taken = _rounds(steps, case.seconds)
    host = _host(
        {name: _step(cls, twin, how, 1, 2) for name, how in WAYS.items()}, min(2.0, case.seconds)
    )
    records = []
    for name in WAYS:
        phases = {
            "forward": taken[name]["forward"],
            "optimiser": taken[name]["optimiser"],
            "sync": taken[name]["sync"],
        }
        frozen = taken["frozen"]["backward"]
        phases["dgrad"] = frozen
        phases["wgrad"] = [own - floor for own, floor in zip(taken[name]["backward"], frozen)]
        phases["step"] = [sum(parts) for parts in zip(*taken[name].values())]
        phases["host"] = [sum(parts) for parts in zip(*host[name].values())]
        for phase in PHASES:
            about = f"{case.name}: {phase}", name, found.threads, "step", case.density, "float32"
            records.append(Record(OP, *about, **Times.of(phases[phase]).fields(MILLI)))
    return records + _lean_parts(case, found)


def _lean_parts(case, found):
    """A record a part of a lean step: its time, and what it would take at this run's ceilings."""
    cls, shape, twin, batch, tokens = MODELS[case.name]
    shape, tokens = (shape, tokens) if case.tokens else (twin, 2)
    step = _step(cls, shape, dict(method="ours"), batch, tokens)
    sft.lean(step.model)
    limits = step_parts.limits_of(step.model, batch, tokens, found.ceilings)
    return _part_records(case, found, step_parts.parts_of(step, limits))


def _convnet_parts(case, found):
    """As `_lean_parts`, of a net of convolutions."""
    size = "quick" if case.tokens else "tiny"
    its_case = next(c for c in bench_lean.cases(size) if c.name == CONVNET)
    step = bench_lean.step_of(its_case, True)
    limits = step_parts.limits_of_convnet(step, found.ceilings)
    return _part_records(case, found, step_parts.parts_of(step, limits))


def _part_records(case, found, parts):
    return [
        Record(
            OP,
            f"{case.name}: lean step, {part.name}",
            OURS,
            found.threads,
            "step",
            case.density,
            "float32",
            p50=1e3 * part.seconds,
            bound=None if part.limit is None else 1e3 * part.limit,
            rounds=step_parts.STEPS,
        )
        for part in parts
    ]


def _step(cls, shape, how, batch, tokens):
    model, optimizer = training.prepare(training.base(cls, shape, torch.float32), **how)
    return training.Step(model, optimizer, batch, tokens, shape["hidden_size"], torch.float32)


def _rounds(steps, seconds, least=2, most=200):
    """{name: {phase: [seconds]}} of steps in turn, after one that is not counted.

    The phases of a round belong together.
    """
    taken = {
        name: {phase: [] for phase in ("forward", "backward", "optimiser", "sync")}
        for name in steps
    }
    selective = {
        name: [m for m in step.model.modules() if isinstance(m, sft.nn.SelectiveLinear)]
        for name, step in steps.items()
    }
    for step in steps.values():
        step()
    begin = time.perf_counter()
    for number in range(most):
        if number >= least and time.perf_counter() - begin > seconds:
            break
        for name in order_of(list(steps), number):
            step = steps[name]
            sync = functools.partial(_sync, selective[name])
            for phase, call in (
                ("forward", step.forward),
                ("backward", step.backward),
                ("optimiser", step.optimize),
                ("sync", sync),
            ):
                start = time.perf_counter()
                call()
                taken[name][phase].append(time.perf_counter() - start)
    return taken


def _sync(modules):
    """What the next forward does first: bring stale weights up to date."""
    for module in modules:
        module.sync()


def _host(steps, seconds):
    """`_rounds` on one thread: with more the time to wake a thread for nothing would count as the
    host's.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _rounds(steps, seconds, least=3)
    finally:
        torch.set_num_threads(threads)
