"""dense_product against torch's own product and oneDNN's, and the step of a whole lean model beside
PEFT's LoRA.
"""

import torch
import torch.nn.functional as F

import sparse_ft as sft
from bench import training
from bench.cases import Case
from bench.stats import paired_ratio
from bench.suite import OURS, Unavailable, must
from sparse_ft import ops
from sparse_ft.ops import _onednn

OP = "dense_product"
TESTS = ["tests/ops/test_dense_product.py", "tests/native/test_dense_product.py"]
TESTS += ["tests/lean_modules/test_dense_product.py"]
TORCH, ONEDNN, LORA = "torch", "oneDNN", "LoRA r=8"
FORWARD, TO_INPUT = "forward", "gradient to the input"
SHAPES = {  # of a weight: (rows, columns), tokens
    "MiniLM attention": ((384, 384), 2048),
    "MiniLM up": ((1536, 384), 2048),
    "MiniLM down": ((384, 1536), 2048),
    "SmolLM2 up": ((1536, 576), 512),
    "SmolLM2 down": ((576, 1536), 512),
    "SmolLM2 head": ((49152, 576), 170),
    "square": ((2048, 2048), 2048),
}
MODELS = {  # (class, shape, shape of its tiny twin, batch, tokens)
    "MiniLM, 32 × 64": (training.MiniLM, training.MINILM, training.TINY_MINILM, 32, 64),
    "SmolLM2, 4 × 128": (training.Decoder, training.SMOLLM2, training.TINY_SMOLLM2, 4, 128),
}
STRUCTURES = ("columns", "entries")
STEP = ", step with "  # between a model and a structure in the name of a case
SLOWER = 1.2  # torch's time over oneDNN's from which a step is promised to gain
STEP_OF_LORA = 0.55
PRODUCT_SECONDS = {"tiny": 0.01, "quick": 0.3, "full": 1.0}
STEP_SECONDS = {"tiny": 0.05, "quick": 4.0, "full": 15.0}


def cases(size):
    tiny = size == "tiny"
    products = [
        Case(
            f"{name}, {way}",
            way,
            shape=(8, 8) if tiny else shape,
            tokens=4 if tiny else tokens,
            seconds=PRODUCT_SECONDS[size],
        )
        for name, (shape, tokens) in SHAPES.items()
        for way in (FORWARD, TO_INPUT)
    ]
    steps = [
        Case(
            f"{model}{STEP}{structure}",
            structure,
            training.DENSITY,
            tokens=0 if tiny else 1,
            seconds=STEP_SECONDS[size],
        )
        for model in MODELS
        for structure in STRUCTURES
    ]
    return products + steps


def bound(case, ceilings):
    if case.kind in STRUCTURES:
        return None
    rows, columns = case.shape
    return 2 * case.tokens * rows * columns / ceilings.gemm["float32"]


def providers(case):
    return _steps(case) if case.kind in STRUCTURES else _products(case)


def _products(case):
    rows, columns = case.shape
    weight = torch.randn(rows, columns)
    as_linear = weight if case.kind == FORWARD else weight.T
    input = torch.randn(case.tokens, as_linear.size(1))

    def onednn():
        linear = _onednn.find_linear()
        if linear is None:
            raise Unavailable("this torch has no oneDNN linear product")
        return lambda: linear(input, as_linear, None, "none", [], "")

    return {
        OURS: lambda: lambda: ops.dense_product(input, as_linear),
        TORCH: lambda: lambda: F.linear(input, as_linear),
        ONEDNN: onednn,
    }


def _steps(case):
    cls, shape, twin, batch, tokens = MODELS[case.name.partition(STEP)[0]]
    shape, batch, tokens = (shape, batch, tokens) if case.tokens else (twin, 1, 4)

    def step(method):
        base = training.base(cls, shape, torch.float32)
        model, optimizer = training.prepare(base, method, case.kind)
        if method == OURS:
            sft.lean(model)
        return training.Step(model, optimizer, batch, tokens, shape["hidden_size"], torch.float32)

    return {OURS: lambda: step(OURS), LORA: lambda: step(LORA)}


def musts(found):
    result = []
    for name, case in found.cases.items():
        if case.kind in STRUCTURES:
            result.append(_step_must(found, name))
            continue
        line = f"{name}: time over torch's product"
        key = f"{_key(name)}.over_torch"
        ratio = found.ratio(name, OURS, TORCH)
        result.append(must(found, OP, key, line, ratio, 1.02, at_least=False))
    return result


def _step_must(found, name):
    model = name.partition(",")[0]
    slower = [
        paired_ratio(samples[TORCH], samples[ONEDNN])
        for product, samples in found.samples.items()
        if product.startswith(model) and ONEDNN in samples
    ]
    gain = sum(slower) / len(slower) if slower else 1.0
    why = (
        ""
        if gain >= SLOWER
        else f"torch's products take {gain:.2f} of oneDNN's time here, not {SLOWER}"
    )
    line = f"{name}, lean: time over LoRA r=8"
    ratio = found.ratio(name, OURS, LORA)
    note = "" if ratio is None else f"measured {ratio:.2f}"
    key = f"{_key(model)}-{found.cases[name].kind}.over_lora"
    return must(
        found, OP, key, line, ratio, STEP_OF_LORA, at_least=False, note=note, unmeasured=why
    )


def _key(name):
    """What the promises of a product or model are known by: "minilm-up-forward", "smollm2"."""
    return name.removesuffix(" to the input").replace(",", "").replace(" ", "-").lower()
