"""A quantised layer with selected entries through saving, copying, moving and reverting."""

import contextlib
import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.distributed.fsdp
import torch.utils.checkpoint
from helpers.quantised import FORMATS, HIDDEN, network, plan_of, quantise
from torch import nn

import sparse_ft as sft

NAME = "0.weight"


def converted(form, kind="columns", **settings):
    """A converted network that has taken three steps, and its plan."""
    model = quantise(network(), form)
    plan = plan_of(model, kind)
    sft.convert(model, plan, **settings)
    step(model, sft.SelectiveAdamW(model.parameters(), lr=1e-2))
    return model, plan


def step(model, optimizer, steps=3):
    torch.manual_seed(3)
    for _ in range(steps):
        model(torch.randn(8, HIDDEN)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def output(model, dtype=torch.float32):
    with torch.no_grad():
        return model(torch.linspace(-1, 1, 2 * HIDDEN).view(2, HIDDEN).to(dtype))


def codes(model):
    """The plain tensors of every quantised weight, copied."""
    found = []
    for module in model.modules():
        quantiser = sft.quantised.quantiser_of(module)
        if quantiser is not None:
            found += [tensor.clone() for tensor in quantiser.tensors(module)]
    return found


def same(first, second):
    return len(first) == len(second) > 0 and all(map(torch.equal, first, second))


@pytest.mark.parametrize("form", FORMATS)
def test_the_life_of_a_converted_layer(form):
    plain = quantise(network(), form)
    model, plan = converted(form)
    trained, kind = output(model), type(model[0])
    assert not torch.equal(trained, output(plain))
    assert same(codes(model), codes(plain))

    # a copy and a pickle train on, by themselves
    copies = [copy.deepcopy(model)]
    if not form.startswith("torchao"):  # whose models are not pickled, converted or not
        copies.append(pickle.loads(pickle.dumps(model)))
    for again in copies:
        assert type(again[0]) is kind
        assert torch.equal(output(again), trained)
        step(again, torch.optim.SGD(again.parameters(), lr=0.1))
        assert not torch.equal(output(again), trained)
    assert torch.equal(output(model), trained)

    # a checkpoint brings its plan along
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = quantise(network(seed=1), form)
    sft.load(loaded, torch.load(file, weights_only=True))
    assert torch.equal(output(loaded), trained)
    assert same(codes(loaded), codes(plain))

    # without values, they are what the codes hold
    state = model.state_dict()
    without = {name: tensor for name, tensor in state.items() if not name.endswith("values")}
    loaded.load_state_dict(without)
    fresh = quantise(network(), form)
    sft.convert(fresh, plan)
    assert torch.equal(output(loaded), output(fresh))

    # moved and cast, values keep their precision
    model.to("cpu")
    assert torch.equal(output(model), trained)

    with pytest.warns(UserWarning, match="0.weight, 2.weight, 4.weight: .* come back as they were"):
        sft.revert(model)
    assert type(model[0]) is type(plain[0])
    assert same(codes(model), codes(plain))
    assert torch.equal(output(model), output(plain))
    assert [*model.state_dict()] == [*plain.state_dict()]


@pytest.mark.parametrize("form", FORMATS)
def test_an_untrained_model_reverts_without_a_word(form):
    model = quantise(network(), form)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    sft.convert(model, plan_of(model, "rows"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sft.revert(model)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


@pytest.mark.parametrize("form", FORMATS)
def test_half_precision(form):
    model = quantise(network().to(torch.bfloat16), form)
    sft.convert(model, plan_of(model, "entries"))
    assert model[0].values.dtype == torch.float32
    inputs = torch.randn(4, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    model(inputs).sum().backward()
    assert inputs.grad.dtype == torch.bfloat16
    assert model[0].values.grad.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        wide = model(torch.randn(4, HIDDEN, requires_grad=True))
    assert wide.dtype == torch.bfloat16


@pytest.mark.parametrize("form", FORMATS)
def test_inference_mode(form):
    model, _ = converted(form)
    with torch.inference_mode():
        assert torch.equal(model(torch.ones(2, HIDDEN)), model(torch.ones(2, HIDDEN)))
        found = model(torch.linspace(-1, 1, 2 * HIDDEN).view(2, HIDDEN))
    assert torch.equal(found, output(model))


def test_stepping_between_forward_and_backward_raises():
    for make in (sft.SelectiveAdamW, torch.optim.AdamW):
        model, _ = converted("torchao int8")
        optimizer = make(model.parameters(), lr=1e-2)
        loss = model(torch.randn(4, HIDDEN)).sum()
        loss.backward(retain_graph=True)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_restoring_slides_between_the_base_and_what_was_trained():
    model, _ = converted("nf4", origin=True)
    plain, trained = quantise(network(), "nf4"), output(model)
    untouched = quantise(network(), "nf4")
    sft.convert(untouched, plan_of(plain, "columns"))
    sft.restore(model, 0.0)
    assert torch.equal(output(model), output(untouched))
    sft.restore(model, 1.0)
    assert torch.equal(output(model), trained)


def test_a_layer_that_ran_before():
    """bitsandbytes moves scales in its first forward, and reorders codes in one without
    gradients.
    """
    for form in FORMATS:
        model = quantise(network(), form).eval()
        output(model)
        sft.convert(model, plan_of(model, "columns"))
        fresh = quantise(network(), form)
        sft.convert(fresh, plan_of(fresh, "columns"))
        # bitsandbytes rounds scales when it reorders codes
        torch.testing.assert_close(output(model), output(fresh), rtol=2e-2, atol=2e-2)


def test_the_report_says_what_serves():
    model, _ = converted("nf4")
    rows = [row for row in sft.summary(model).rows if row.name.endswith("weight")]
    assert [row.how for row in rows] == ["SelectiveLinear4bit: bitsandbytes 4-bit"] * 3
    assert rows[0].total == 2 * HIDDEN * HIDDEN


def test_tensors_of_a_state_dict_are_refused_where_they_would_lie():
    model, _ = converted("int8")
    with pytest.raises(ValueError, match="0.weight.*quantised.*sft.merge_quantised"):
        sft.state_dict(model)


class Halves(sft.quantised.Quantiser):
    """A user's own format: halves of whole numbers."""

    name = "halves"

    class Layer(nn.Linear):
        def __init__(self, linear):
            super().__init__(linear.in_features, linear.out_features, bias=False)
            whole = (linear.weight.detach() * 40).round().to(torch.int8)
            self.weight = nn.Parameter(whole, requires_grad=False)

        def forward(self, input):
            return nn.functional.linear(input, self.weight / 40)

    REPLACES = (Layer,)

    @staticmethod
    def dequantise(layer, dtype):
        return layer.weight.to(dtype) / 40


def test_a_sixth_quantiser():
    model = nn.Sequential(Halves.Layer(nn.Linear(HIDDEN, 8)))
    before = output(model)
    sft.convert(model, {NAME: sft.Columns([0, 5])})
    torch.testing.assert_close(output(model), before)
    step(model, sft.SelectiveAdamW(model.parameters(), lr=1e-2))
    assert not torch.allclose(output(model), before)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(output(again), output(model))


def test_a_quantiser_that_gives_the_memory_of_the_layer_is_refused():
    class Shared(sft.quantised.Quantiser):
        name = "shared"

        class Layer(nn.Linear):
            pass

        REPLACES = (Layer,)

        @staticmethod
        def dequantise(layer, dtype):
            return layer.weight.detach()

    model = nn.Sequential(Shared.Layer(4, 4))
    with pytest.raises(ValueError, match="0.weight: its quantiser 'shared' dequantises into"):
        sft.convert(model, {NAME: sft.Rows([0])})
    assert type(model[0]) is Shared.Layer
    sft.quantised.quantiser.QUANTISERS.remove(Shared)


def test_a_quantiser_says_what_it_replaces():
    with pytest.raises(TypeError, match="Nameless: a Quantiser says its name and what it REPLACES"):

        class Nameless(sft.quantised.Quantiser):
            pass


def test_what_is_not_quantised_yet_is_refused():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    for layer in (
        bitsandbytes.nn.Linear4bit(8, 8),
        bitsandbytes.nn.Linear8bitLt(8, 8, has_fp16_weights=False),
    ):
        model = nn.Sequential(layer)
        with pytest.raises(ValueError, match="0.weight: its weight is not quantised yet; move"):
            sft.convert(model, {NAME: sft.Rows([0])})
    model = nn.Sequential(bitsandbytes.nn.Linear8bitLt(8, 8))
    with pytest.raises(ValueError, match="0.weight: it quantises anew in every forward"):
        sft.convert(model, {NAME: sft.Rows([0])})


@pytest.mark.parametrize("form", FORMATS)
def test_a_quantised_weight_does_not_train_whole(form):
    model = quantise(network(), form)
    with pytest.raises(TypeError, match="plan: '0.weight' is quantised, so it cannot train whole"):
        sft.convert(model, {NAME: "all"})


def test_adapters_first_then_selections():
    peft = pytest.importorskip("peft")
    for form in ("nf4", "int8"):
        model = quantise(network(), form)
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], r=2))
        plan = {
            "base_model.model.0.base_layer.weight": sft.Columns([0, 5]),
            "base_model.model.2.weight": sft.Rows([1]),
            "base_model.model.0.lora_A.default.weight": "all",
            "base_model.model.0.lora_B.default.weight": "all",
        }
        sft.convert(model, plan)
        model(torch.randn(4, HIDDEN)).square().mean().backward()
        trained = [name for name, p in model.named_parameters() if p.grad is not None]
        assert len(trained) == 4, form


def test_a_layer_that_someone_wrapped_is_refused():
    model = quantise(network(), "torchao int8")
    model[0].forward = model[0].forward
    with pytest.raises(ValueError, match="0.weight: its forward was replaced"):
        sft.convert(model, {NAME: sft.Rows([0])})


def test_what_needs_a_dense_weight_refuses_by_name():
    model, plan = converted("nf4")
    optimizer = sft.SelectiveAdamW(model.parameters())
    with pytest.raises(ValueError, match="0.weight.*quantised.*sft.revert"):
        sft.reselect(model, optimizer, {name: sft.Columns([0, 1, 7]) for name in plan})
    with pytest.raises(ValueError, match="0.weight.*quantised"):
        sft.scale_updates(model, {NAME: torch.ones(())})
    with pytest.raises(ValueError, match="0.weight.*quantised"):
        sft.select(model, density=0.1, score="magnitude")
    with pytest.raises(RuntimeError, match="0.weight: .* torch.func"):
        torch.func.grad(lambda x: model(x).sum())(torch.randn(2, HIDDEN))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    model, _ = converted("nf4", "rows")
    inputs = torch.randn(4, HIDDEN, requires_grad=True)
    model(inputs).square().sum().backward()
    plain = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    output_of = torch.utils.checkpoint.checkpoint(model, inputs, use_reentrant=reentrant)
    output_of.square().sum().backward()
    for parameter, expected in zip(model.parameters(), plain):
        assert (parameter.grad is None) == (expected is None)
        assert expected is None or torch.equal(parameter.grad, expected)


def test_a_compiled_model_runs_the_layer_outside_of_its_graph():
    model, _ = converted("nf4")
    inputs = torch.randn(4, HIDDEN)
    expected = model(inputs)
    compiled = torch.compile(model, backend="eager")(inputs)
    torch.testing.assert_close(compiled, expected)
    compiled.sum().backward()
    assert model[0].values.grad is not None


def test_shards_are_refused_by_name():
    """As FSDP2's: in a forward it shows parameters that it has gathered into memory of its own."""
    with one_process():
        model, _ = converted("nf4")
        torch.distributed.fsdp.fully_shard(model)
        with pytest.raises(RuntimeError, match="0.weight: .*fully_shard.* it is quantised"):
            model(torch.randn(4, HIDDEN))


@contextlib.contextmanager
def one_process():
    """A process group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
