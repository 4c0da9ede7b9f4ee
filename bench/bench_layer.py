"""A whole training step of one Llama-1B-shaped layer, batch 2 × 512.

Ours against full, frozen, LoRA and SHiRA; its memory.
"""

import torch

from bench import memory, training
from bench.cases import Case
from bench.records import Must, Record
from bench.runner import RunFailed, run_apart
from bench.stats import paired_ratio
from bench.suite import OURS, must, without_bf16

OP = "layer"
WHOLE_STEPS = True
TESTS = ["tests/nn/test_linear.py", "tests/nn/test_memory.py", "tests/test_functional.py"]
TESTS += ["tests/optim/test_selective_adamw.py", "tests/optim/test_step_memory.py"]
MIB = 2**20
BATCH, TOKENS = 2, 512
PRODUCTS = "selected GEMM alone"
MEMORY = (
    "{} peak of a step over saved + values + gradients + state, activation gradients as in the"
    " all-frozen step"
)
# (way, its name in a key, at least so many times as fast)
SLOWER = (("LoRA r=8", "lora", 1.0), ("SHiRA r=8", "shira", 1.0), ("full", "full", 1.3))


def cases(size):
    if size == "tiny":
        return [Case("fp32", "columns", training.DENSITY, "float32", (0, 0), 4, 0.05)]
    dtypes = {"fp32": "float32"} | ({} if without_bf16() else {"bf16": "bfloat16"})
    # A round of all takes 20 s on one thread, 11 s on two; there are three at least.
    seconds = 5.0 if size == "quick" else 20.0
    return [
        Case(name, "columns", training.DENSITY, dtype, (2048, 8192), TOKENS, seconds)
        for name, dtype in dtypes.items()
    ]


def _shape(case):
    return training.LLAMA_1B if case.shape[0] else training.TINY_LLAMA


def providers(case):
    dtype, shape = getattr(torch, case.dtype), _shape(case)

    def step(method):
        model, optimizer = training.prepare(
            training.base(training.LlamaLayer, shape, dtype), method
        )
        return training.Step(model, optimizer, BATCH, case.tokens, shape["hidden_size"], dtype)

    found = {method: lambda method=method: step(method) for method in training.METHODS}
    found[PRODUCTS] = lambda: training.selected_products(
        training.base(training.LlamaLayer, shape, dtype), BATCH * case.tokens, dtype
    )
    return found


def musts(found):
    result = []
    for name, why in {"fp32": "", "bf16": without_bf16()}.items():
        for slow, what, target in SLOWER:
            line = f"step of a Llama-1B layer, {name}: times as fast as {slow}"
            ratio = found.ratio(name, slow)
            key = f"step-{name}.than_{what}"
            result.append(must(found, OP, key, line, ratio, target, unmeasured=why))
        line = (
            f"step of a Llama-1B layer, {name}: time over the all-frozen step plus the selected"
            " GEMM"
        )
        over = _over_floor(found.samples.get(name, {}))
        key = f"step-{name}.over_frozen_and_product"
        result.append(must(found, OP, key, line, over, 1.1, at_least=False, unmeasured=why))
    return result


def _over_floor(samples):
    """Ours over the all-frozen step plus the selected products alone, from paired rounds."""
    if not {OURS, "frozen", PRODUCTS} <= samples.keys():
        return None
    frozen, products = samples["frozen"], samples[PRODUCTS]
    return paired_ratio(
        samples[OURS], {r: frozen[r] + products[r] for r in frozen.keys() & products.keys()}
    )


def bytes_of(method, size):
    """{what: bytes} of two training steps of one method, above a loaded frozen layer.

    Runs in a process of its own.
    """
    memory.return_freed_blocks()
    torch.set_num_threads(2)
    tokens, shape = (4, training.TINY_LLAMA) if size == "tiny" else (TOKENS, training.LLAMA_1B)
    held = {}

    def steps(model, hidden=shape["hidden_size"]):
        model, optimizer = training.prepare(model, method)
        held["step"] = step = training.Step(model, optimizer, BATCH, tokens, hidden, torch.float32)
        step()
        step()

    def loaded():
        model = training.base(training.LlamaLayer, shape, torch.float32)
        with torch.no_grad():
            # Buffers of libraries come in here: no cost of training.
            model(torch.randn(BATCH, tokens, shape["hidden_size"]))
        return model

    # Its steps bring in the code that a step runs, which is resident from then on.
    tiny = training.TINY_LLAMA
    steps(training.base(training.LlamaLayer, tiny, torch.float32), tiny["hidden_size"])
    first, second = loaded(), loaded()
    found = {"resident": memory.resident_peak(lambda: steps(first))}
    found["allocator"], _ = memory.allocator_peak(lambda: steps(second))
    step = held["step"]
    try:
        found["saved"] = memory.saved_bytes(step.model, lambda: step.model(step.hidden))
    except NotImplementedError:  # SHiRA keeps sparse tensors, which have no storage to count
        found["saved"] = None
    trained = [p for p in step.model.parameters() if p.requires_grad]
    inside = method == "full"  # its parameters are the loaded weights, counted in the level
    found["values"] = 0 if inside else sum(p.nbytes for p in trained)
    found["gradients"] = sum(p.nbytes for p in trained)
    found["state"] = memory.optimizer_bytes(step.optimizer) if step.optimizer else 0
    return found


def apart(size, threads):
    """Peak bytes of a step; they do not depend on the number of threads."""
    found, records = {}, []
    # 10 to 20 s each
    for method in (OURS, "frozen", "full", "LoRA r=8") if size == "full" else (OURS, "frozen"):
        try:
            found[method] = run_apart(bytes_of, method, size)
        except RunFailed as why:
            records.append(
                Record(
                    OP, f"memory, {method}", method, threads, note=str(why).strip().splitlines()[-1]
                )
            )
            continue
        records += [
            Record(OP, f"memory: {what}", method, threads, unit="MiB", p50=number / MIB)
            for what, number in found[method].items()
            if number is not None
        ]
    return records, memory_musts(found, threads)


def memory_musts(found, threads):
    """Peaks against what a step must hold.

    The gradients of activations as the all-frozen step has them.
    """
    ours, frozen = found.get(OURS), found.get("frozen")
    if not ours or not frozen:
        return []
    held = sum(ours[what] for what in ("saved", "values", "gradients", "state"))
    result = []
    for how in ("resident", "allocator"):
        if ours[how] is None or frozen[how] is None:
            continue
        passing = frozen[how] - frozen["saved"]
        note = (
            f"peak {ours[how] / MIB:.0f} MiB; {ours[how] / held:.3g} with no activation gradients"
            " in the bound"
        )
        line = MEMORY.format(how)
        over = ours[how] / (held + passing)
        result.append(Must(OP, f"peak.{how}", line, threads, over, 1.02, False, note))
    return result
