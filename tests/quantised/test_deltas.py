"""Deltas of what trained over a quantised base: kept, put in and taken out bit for bit."""

import copy

import pytest
import torch
from helpers.quantised import FORMATS, HIDDEN, network, plan_of, quantise

import sparse_ft as sft


def base(form, seed=0):
    return quantise(network(seed), form)


def trained(form, kind="columns", steps=3, **settings):
    """A converted model that has trained selections over codes and one bias whole."""
    model = base(form)
    sft.convert(model, {**plan_of(model, kind), "4.bias": "all"}, **settings)
    step(model, steps)
    return model


def step(model, steps=3):
    torch.manual_seed(5)
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        model(torch.randn(8, HIDDEN)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def output(model):
    with torch.no_grad():
        return model(torch.linspace(-1, 1, 2 * HIDDEN).view(2, HIDDEN))


@pytest.mark.parametrize("form", FORMATS)
def test_a_delta_goes_round(form, tmp_path):
    model = trained(form)
    path = tmp_path / "delta"
    sft.save_delta(model, path)
    delta, plain = sft.load_delta(path), base(form)
    before = output(plain)
    names = [*plain.state_dict()]
    sft.apply(plain, delta)
    assert torch.equal(output(plain), output(model))
    assert not plain[0].values.requires_grad
    with sft.disabled(plain):
        assert torch.equal(output(plain), before)
    assert torch.equal(output(plain), output(model))
    sft.remove(plain, delta)
    assert torch.equal(output(plain), before)
    assert [*plain.state_dict()] == names
    assert type(plain[0]) is type(base(form)[0])

    # and trains on
    sft.convert(plain, delta.plan)
    sft.quantised.start_from(plain, delta)
    assert torch.equal(plain[0].values, model[0].values)


@pytest.mark.parametrize("kind", ["rows", "blocks", "entries"])
def test_every_structure_goes_round(kind, tmp_path):
    model = trained("nf4", kind)
    sft.save_delta(model, tmp_path / "delta")
    plain = base("nf4")
    sft.apply(plain, sft.load_delta(tmp_path / "delta"))
    assert torch.equal(output(plain), output(model))


def test_half_of_a_delta(tmp_path):
    model, plain = trained("int8"), base("int8")
    delta = sft.Delta.of(model)
    sft.apply(plain, delta, alpha=0.5)
    start = base("int8")
    sft.convert(start, delta.plan)
    torch.testing.assert_close(plain[0].values, (start[0].values + model[0].values) / 2)
    sft.remove(plain)
    sft.apply(plain, delta, alpha=0.0)
    with torch.no_grad():
        start[4].bias.copy_(plain[4].bias)
    assert torch.equal(output(plain), output(start))


@pytest.mark.parametrize("form", FORMATS)
def test_another_base_is_refused(form):
    delta = sft.Delta.of(trained(form))
    other = base(form, seed=1)
    before = output(other)
    with pytest.raises(ValueError, match="is quantised, and holds other codes or scales"):
        sft.apply(other, delta)
    assert torch.equal(output(other), before)
    sft.apply(other, delta, force=True)
    assert not torch.equal(output(other), before)


def test_an_untouched_quantised_layer_of_another_base_is_told():
    for form in ("nf4", "torchao int8"):
        model = base(form)
        sft.convert(model, {"0.weight": sft.Rows([1])})
        step(model)
        delta = sft.Delta.of(model)
        other = base(form)
        other[2] = base(form, seed=1)[2]
        with pytest.raises(ValueError, match="what the delta leaves alone has other numbers"):
            sft.apply(other, delta)
        sft.apply(base(form), delta)


def test_the_base_of_a_converted_model_is_known_without_its_origin():
    model = trained("nf4")
    start = base("nf4")
    sft.convert(start, plan(model))
    with torch.no_grad():
        start[4].bias.copy_(model[4].bias)
    with pytest.warns(UserWarning, match="4.bias train whole"), sft.disabled(model):
        assert torch.equal(output(model), output(start))
    assert not torch.equal(output(model), output(start))


def plan(model):
    return {**plan_of(model, "columns"), "4.bias": "all"}


def test_a_second_delta_in_one_layer_is_refused():
    first, second = sft.Delta.of(trained("nf4")), sft.Delta.of(trained("nf4", "rows"))
    model = base("nf4")
    sft.apply(model, first)
    with pytest.raises(ValueError, match="'0.weight' is quantised, and another delta is in it"):
        sft.apply(model, second)
    with pytest.raises(ValueError, match="sft.remove the delta"):
        sft.convert(model, {"0.weight": sft.Rows([0])})
    sft.remove(model)
    sft.apply(model, second)


def test_an_interrupted_delta_leaves_the_base(monkeypatch):
    delta, model = sft.Delta.of(trained("nf4")), base("nf4")
    before, calls = output(model), []
    adopt = sft.deltas.over_codes.adopt_quantised

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        adopt(*arguments)

    monkeypatch.setattr(sft.deltas.over_codes, "adopt_quantised", failing)
    with pytest.raises(KeyboardInterrupt):
        sft.apply(model, delta)
    monkeypatch.undo()
    assert torch.equal(output(model), before)
    assert not any(isinstance(module, sft.quantised.Quantised) for module in model.modules())
    sft.apply(model, delta)


def test_a_copy_of_a_model_with_a_delta_in_it():
    delta, model = sft.Delta.of(trained("nf4")), base("nf4")
    before = output(model)
    sft.apply(model, delta)
    again = copy.deepcopy(model)
    assert torch.equal(output(again), output(model))
    sft.remove(again)
    assert torch.equal(output(again), before)
    assert not torch.equal(output(model), before)


def test_patches_for_engines_are_refused_by_name():
    with pytest.raises(ValueError, match="'0.weight' is quantised, and no engine"):
        sft.patches(trained("nf4"))
