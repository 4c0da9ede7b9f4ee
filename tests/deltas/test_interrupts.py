"""Ctrl-C at any line of deltas: a model has a delta or has it not, and can always get rid of it."""

import itertools

import torch
from helpers.interrupting import interrupted
from helpers.small_deltas import bits, net, same_bits, trained

import sparse_ft as sft

PLAN = {
    "layers.0.weight": sft.Rows([2, 3]),
    "layers.3.weight": sft.Entries([0, 1, 50, 143]),
    "head.bias": "all",
}


def each_line(prepare):
    """`(model, line)` after an interrupt at every third line of what `prepare` gives to do; it held
    at every one.
    """
    for line in itertools.count(1, 3):
        model, act = prepare()
        if not interrupted(act, line, lambda file: "sparse_ft/deltas" in file):
            return
        yield model, line


def test_apply():
    delta, before, lines = sft.Delta.of(trained(PLAN)), bits(net()), 0
    after = bits(sft.apply(net(), delta))

    def prepare():
        model = net()
        return model, lambda: sft.apply(model, delta)

    for model, line in each_line(prepare):
        if not same_bits(model, before):
            assert same_bits(model, after), line  # done, but for handing over the model
            sft.remove(model)
        assert same_bits(model, before), line
        assert same_bits(sft.apply(model, delta), after), line
        lines = line
    assert lines > 100


def test_remove():
    delta, before, lines = sft.Delta.of(trained(PLAN)), bits(net()), 0
    after = bits(sft.apply(net(), delta))

    def prepare():
        model = sft.apply(net(), delta)
        return model, lambda: sft.remove(model)

    for model, line in each_line(prepare):
        if not same_bits(model, before):
            assert same_bits(model, after), line
            sft.remove(model)
        assert same_bits(model, before), line
        assert same_bits(sft.apply(model, delta), after), line
        lines = line
    assert lines > 50


def test_disabled():
    """`values`, weights and deltas are there again."""
    delta = sft.Delta.of(trained({"layers.1.weight": sft.Rows([3])}))
    lines = 0

    def prepare():
        model = sft.apply(net(), delta)
        sft.convert(model, PLAN, origin=True)
        with torch.no_grad():
            model.layers[0].values += 1
        sft.sync(model)

        def act():
            with sft.disabled(model):
                pass

        return model, act

    after = bits(prepare()[0])
    for model, line in each_line(prepare):
        assert same_bits(model, after), line
        lines = line
    assert lines > 50
