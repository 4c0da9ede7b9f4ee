"""Ctrl-C at any line: convert leaves the model as it was or converted, revert can be called again, a step is whole."""

import itertools
import sys

import torch
from torch import nn

import sparse_ft as sft

PLAN = {
    "0.weight": sft.Columns([1]),
    "1.weight": sft.Rows([1]),
    "2.weight_hh_l0": sft.Entries([1]),
    "3.weight": sft.Rows([2]),
    "0.bias": "all",
}


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1), nn.LSTM(4, 4), nn.Embedding(5, 4))


def looks(model):
    """What a conversion changes."""
    modules = [(type(m), [*m._parameters], [*m._modules], len(m._forward_pre_hooks)) for m in model.modules()]
    return modules, [(name, p.requires_grad, p.tolist()) for name, p in model.named_parameters()]


def interrupted(act, line):
    """Call `act`, interrupted before the given line of sparse_ft that it executes; whether it came that far."""
    count = itertools.count(1)

    def trace(frame, event, _):
        if "sparse_ft" not in frame.f_code.co_filename:
            return None
        if event == "line" and next(count) == line:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        act()
        return False
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
        torch.set_grad_enabled(True)  # an interrupt in the last line of `with torch.no_grad()`


def each_line(prepare):
    """`(model, line)` after an interrupt at each line in turn of what `prepare` gives to do."""
    for line in itertools.count(1):
        model, act = prepare()
        if not interrupted(act, line):
            return
        yield model, line


def test_convert():
    before, lines = looks(build()), 0

    def prepare():
        model = build()
        return model, lambda: sft.convert(model, PLAN)

    for model, line in each_line(prepare):
        if looks(model) != before:
            sft.revert(model)  # done, but for handing over the report
        assert looks(model) == before, line
        lines = line
    assert lines > 100


def test_revert():
    before = looks(build())

    def prepare():
        model = build()
        sft.convert(model, PLAN)
        return model, lambda: sft.revert(model)

    for model, line in each_line(prepare):
        if "_sparse_ft" in model.__dict__:
            sft.revert(model)
        assert looks(model) == before, line


def test_step():
    x = torch.randn(3, 4)

    def prepare():
        model = build()
        sft.convert(model, {"0.weight": sft.Columns([1])})
        optimizer = sft.SelectiveAdamW(model.parameters(), lr=0.1, skip_nonfinite=True)
        model[0](x).square().sum().backward()
        model.optimizer = optimizer
        return model, optimizer.step

    for model, line in each_line(prepare):
        shown = model[0](x).detach()
        sft.sync(model)
        assert torch.equal(shown, model[0](x)), line
        model.optimizer.step()


def test_forward_that_reads_an_alias():
    class Interrupted(nn.Conv1d):
        def forward(self, input):
            raise KeyboardInterrupt

    model = nn.Sequential(Interrupted(6, 5, 1))
    sft.convert(model, {"0.weight": sft.Rows([1])})
    try:
        model(torch.randn(2, 6, 3))
    except KeyboardInterrupt:
        sft.revert(model)
    assert model[0].weight is model[0]._parameters["weight"]
