"""Ctrl-C at any line: convert and lean leave the model as it was or done, revert can be called
again, a step is whole.
"""

import itertools

import pytest
import torch
from helpers.exhaustive import stride as stride_of
from helpers.interrupting import interrupted
from helpers.llama import tiny_llama
from torch import nn

import sparse_ft as sft

PLAN = {
    "0.weight": sft.Columns([1]),
    "1.weight": sft.Rows([1]),
    "2.weight_hh_l0": sft.Entries([1]),
    "3.weight": sft.Rows([2]),
    "0.bias": "all",
}

# Prime strides: the lines that a loop runs through are met in every of its turns at another place.
FEW, MANY = stride_of(7), stride_of(307)


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1), nn.LSTM(4, 4), nn.Embedding(5, 4))


def looks(model):
    """What a conversion changes."""
    modules = [
        (type(m), [*m._parameters], [*m._modules], len(m._forward_pre_hooks))
        for m in model.modules()
    ]
    return modules, [(name, p.requires_grad, p.tolist()) for name, p in model.named_parameters()]


def each_line(prepare, stride=1):
    """`(model, line)` after an interrupt at each line in turn (or each `stride`th) of what
    `prepare` gives to do.
    """
    for line in itertools.count(1, stride):
        model, act = prepare()
        if not interrupted(act, line, lambda file: "sparse_ft" in file):
            return
        yield model, line


def test_convert():
    before, lines = looks(build()), 0

    def prepare():
        model = build()
        return model, lambda: sft.convert(model, PLAN)

    for model, line in each_line(prepare, FEW):
        if looks(model) != before:
            sft.revert(model)  # done, but for handing over the report
        assert looks(model) == before, line
        lines = line
    assert lines > 100


def test_a_hook_whose_handle_was_not_kept(monkeypatch):
    def register(module, hook, **options):
        module._forward_hooks[-1] = hook
        raise KeyboardInterrupt

    model = build()
    before = looks(model)
    monkeypatch.setattr(nn.Module, "register_forward_hook", register)
    with pytest.raises(KeyboardInterrupt):
        sft.convert(model, PLAN)
    assert looks(model) == before and not model[1]._forward_hooks


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


def test_move():
    x = torch.randn(3, 4)
    expected = build()
    with torch.no_grad():
        expected[0].weight[:, 1] += 1
    wanted, before = expected[0](x), looks(expected)

    def prepare():
        model = build()
        sft.convert(model, PLAN)
        model[0].values.data += 1
        sft.sync(model)
        return model, model.double

    for model, line in each_line(prepare):
        values = model[0].values
        model.float()
        assert torch.equal(model[0](x), wanted) and model[0].values is values, line
        sft.revert(model)
        assert looks(model) == before, line
    assert line > 50


def test_load_state_dict():
    def prepare():
        model = build()
        sft.convert(model, PLAN)
        state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
        return model, lambda: model.load_state_dict(state)

    loaded, load = prepare()
    load()
    before = looks(sft.revert(loaded))
    state = {name: tensor + 1 for name, tensor in prepare()[0].state_dict().items()}
    for model, line in each_line(prepare, FEW):
        model.load_state_dict(state)
        assert looks(sft.revert(model)) == before, line


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


def norms_and_activations():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU(), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 2)
    )


LEAN_MODELS = {
    "small": (norms_and_activations, {"1.weight": sft.Columns([1]), "5.bias": "all"}, FEW),
    "llama": (tiny_llama, {"lm_head.weight": sft.Rows([1])}, MANY),
}


def lean_looks(model):
    """What lean and a conversion change."""
    configs = [id(module.config) for module in model.modules() if hasattr(module, "config")]
    attention = model.config._attn_implementation if configs else None
    return looks(model), [sorted(module.__dict__) for module in model.modules()], configs, attention


def as_before(model, before):
    """Whether the model is as it was, or revert makes it so."""
    if lean_looks(model) != before:
        sft.revert(model)
    return lean_looks(model) == before


@pytest.mark.parametrize("name", LEAN_MODELS)
def test_lean(name):
    build, _, stride = LEAN_MODELS[name]
    befores = {}

    def prepare():
        model = build()
        befores[model] = lean_looks(model)
        return model, lambda: sft.lean(model)

    for model, line in each_line(prepare, stride):
        assert as_before(model, befores.pop(model)), line
    assert line > 150


@pytest.mark.parametrize("name", LEAN_MODELS)
def test_revert_of_lean(name):
    build, plan, stride = LEAN_MODELS[name]
    befores = {}

    def prepare():
        model = build()
        befores[model] = lean_looks(model)
        sft.convert(model, plan, lean=True)
        return model, lambda: sft.revert(model)

    for model, line in each_line(prepare, stride):
        assert as_before(model, befores.pop(model)), line


@pytest.mark.parametrize("name", LEAN_MODELS)
def test_convert_and_lean(name):
    build, plan, stride = LEAN_MODELS[name]
    befores = {}

    def prepare():
        model = build()
        befores[model] = lean_looks(model)
        return model, lambda: sft.convert(model, plan, lean=True)

    for model, line in each_line(prepare, stride):
        assert as_before(model, befores.pop(model)), line


def test_a_lean_model_stays_lean_when_its_conversion_is_interrupted():
    build, plan, _ = LEAN_MODELS["small"]
    befores = {}

    def prepare():
        model = build()
        sft.lean(model[:3])  # not all of it
        befores[model] = lean_looks(model)
        return model, lambda: sft.convert(model, plan, lean=True)

    for model, line in each_line(prepare, stride=7):
        before = befores.pop(model)
        assert "_sparse_ft" in model.__dict__ or lean_looks(model) == before, line
