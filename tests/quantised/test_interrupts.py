"""Ctrl-C at any line: a quantised model is as it was, or done."""

import pytest
import torch
from helpers.exhaustive import stride as stride_of
from helpers.interrupting import interrupted
from helpers.quantised import quantise
from torch import nn

import sparse_ft as sft

pytest.importorskip("bitsandbytes")
PLAN = {"0.weight": sft.Columns([1]), "1.weight": sft.Rows([1]), "1.bias": "all"}
STRIDE = stride_of(61)


def build():
    torch.manual_seed(0)
    return quantise(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), "int8")


def trained():
    model = build()
    sft.convert(model, PLAN)
    with torch.no_grad():
        model[0].values += 1
        model[1].bias += 1
    return model


def looks(model):
    """All that conversions, deltas and merging change."""
    modules = [(type(m), [*m._parameters], sorted(vars(m))) for m in model.modules()]
    parameters = [
        (name, type(p), p.requires_grad, p.tolist()) for name, p in model.named_parameters()
    ]
    with torch.no_grad():
        return modules, parameters, model(torch.ones(1, 8)).tolist()


def each_line(prepare):
    """`(model, line)` after an interrupt at every so many lines of what `prepare` gives to do."""
    line = 1
    while True:
        model, act = prepare()
        if not interrupted(act, line, lambda file: "sparse_ft" in file):
            assert line > 3 * STRIDE
            return
        yield model, line
        line += STRIDE


def test_convert():
    before = looks(build())

    def prepare():
        model = build()
        return model, lambda: sft.convert(model, PLAN)

    for model, line in each_line(prepare):
        if any(isinstance(module, sft.quantised.Quantised) for module in model.modules()):
            sft.revert(model)  # done, but for handing over the report
        assert looks(model)[1:] == before[1:], line


def test_apply_and_remove():
    delta, base = sft.Delta.of(trained()), looks(build())
    done = build()
    sft.apply(done, delta)
    there = looks(done)[1:]

    def prepare_apply():
        model = build()
        return model, lambda: sft.apply(model, delta)

    def prepare_remove():
        model = build()
        sft.apply(model, delta)
        return model, lambda: sft.remove(model)

    for prepare in (prepare_apply, prepare_remove):
        for model, line in each_line(prepare):
            assert looks(model)[1:] in (base[1:], there), line


@pytest.mark.parametrize("requantise", [False, True])
def test_merging(requantise):
    """Another call does the rest, and nothing that was trained is lost."""

    def prepare():
        model = trained()
        return model, lambda: sft.merge_quantised(model, requantise)

    done = trained()
    sft.merge_quantised(done, requantise)
    wanted = looks(done)
    for model, line in each_line(prepare):
        if any(isinstance(module, sft.quantised.Quantised) for module in model.modules()):
            sft.merge_quantised(model, requantise)
        elif "_sparse_ft" in vars(model):
            sft.revert(model)
        now = looks(model)
        # An attribute of the format may stay behind.
        assert [each[:2] for each in now[0]] == [each[:2] for each in wanted[0]], line
        assert now[1:] == wanted[1:], line
