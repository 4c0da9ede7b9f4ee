"""A training step with lean modules against the same model without them.

Its time, and the bytes that backward holds.
"""

import torch
from torch import nn

import sparse_ft as sft
from bench import training
from bench.cases import Case
from bench.records import Must, Record
from bench.suite import OURS, must

OP = "lean"
WHOLE_STEPS = True
TESTS = [
    "tests/lean_modules/test_model.py",
    "tests/lean_modules/test_rebuild.py",
    "tests/lean_modules/test_convnet.py",
]
PLAIN = "without lean modules"
BATCH = 2
LLAMA = training.llama(1024, 2816, 16, 8)
# At least so many times fewer bytes; norms and activations of an encoder are torch's own, a
# convolutional net keeps little.
LESS = {"Llama layer, columns": 1.25, "Llama layer, rows": 1.6, "Llama layer, entries": 1.6}
LESS |= {"MiniLM, columns": 1.0, "MiniLM, entries": 1.5, "ResNet, frozen": 5}
# Seconds of a case; convolutions scatter by 10 % from step to step.
SECONDS = {"Llama layer": 3.0, "MiniLM": 6.0, "ResNet": 9.0}
HELD = "{}: bytes held without lean modules over those with"
LAYERS = {"Llama layer": training.LlamaLayer, "MiniLM": training.MiniLM}


class ConvNet(nn.Module):
    """A ResNet of transformers with its BatchNorm in eval mode.

    Pictures [batch, 3, size, size] in.
    """

    def __init__(self, **shape):
        from transformers import ResNetConfig, ResNetModel

        super().__init__()
        self.body = ResNetModel(ResNetConfig(**shape)).eval()

    def forward(self, pictures):
        return self.body(pictures).last_hidden_state


def cases(size):
    kinds = {
        "Llama layer": ("columns", "rows", "entries"),
        "MiniLM": ("columns", "entries"),
        "ResNet": ("frozen",),
    }
    tokens, seconds = (4, dict.fromkeys(kinds, 0.02)) if size == "tiny" else (256, SECONDS)
    return [
        Case(
            f"{model}, {kind}",
            kind,
            training.DENSITY,
            "float32",
            (0, 0) if size == "tiny" else (1, 1),
            tokens,
            seconds[model],
        )
        for model, structures in kinds.items()
        for kind in structures
    ]


def step_of(case, lean):
    model_name, tiny = case.name.partition(",")[0], not case.shape[0]
    if model_name == "ResNet":
        depth = (
            dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
            if tiny
            else dict(depths=[1, 1, 1, 1])
        )
        model, shape = (
            training.base(ConvNet, depth, torch.float32),
            (BATCH, 3, *(2 * [16 if tiny else 224])),
        )
    else:
        sizes = {
            "Llama layer": (training.TINY_LLAMA, LLAMA),
            "MiniLM": (training.TINY_MINILM, training.MINILM),
        }
        size = sizes[model_name][0 if tiny else 1]
        model, shape = (
            training.base(LAYERS[model_name], size, torch.float32),
            (BATCH, case.tokens, size["hidden_size"]),
        )
    model, optimizer = training.prepare(
        model, "frozen" if case.kind == "frozen" else "ours", case.kind
    )
    if lean:
        sft.lean(model)
    return Step(model, optimizer, shape)


class Step(training.Step):
    """A training step on an input of any shape."""

    def __init__(self, model, optimizer, shape):
        self.model, self.optimizer = model, optimizer
        self.hidden = torch.randn(shape).requires_grad_()
        with torch.no_grad():
            self.grad_output = torch.randn_like(model(self.hidden))


def providers(case):
    return {OURS: lambda: step_of(case, True), PLAIN: lambda: step_of(case, False)}


def musts(found):
    line = "{}: time of a lean step over one without"
    return [
        must(
            found,
            OP,
            f"{key_of(case)}.time",
            line.format(name),
            found.ratio(name, OURS, PLAIN),
            1.02,
            at_least=False,
        )
        for name, case in found.cases.items()
    ]


def key_of(case):
    """What its promises are known by: "llama-columns"."""
    return f"{case.name.replace(',', ' ').split()[0].lower()}-{case.kind}"


def extra(size, threads):
    """Bytes held for backward, by `sft.memory.ledger`.

    At one thread count, they do not depend on it.
    """
    if threads != 1:
        return [], []
    records, lines = [], []
    for case in cases(size):
        held = {}
        for name, lean in ((OURS, True), (PLAIN, False)):
            step = step_of(case, lean)
            held[name] = sft.memory.ledger(step.model, step.hidden).total
            records.append(
                Record(
                    OP,
                    f"{case.name}: held for backward",
                    name,
                    1,
                    unit="MiB",
                    p50=held[name] / 2**20,
                )
            )
        line, ratio = HELD.format(case.name), held[PLAIN] / held[OURS]
        lines.append(Must(OP, f"{key_of(case)}.bytes", line, 1, ratio, LESS[case.name]))
    return records, lines
