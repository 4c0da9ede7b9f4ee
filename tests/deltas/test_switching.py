"""disabled: the base for a while, between a forward and its backward too."""

import pytest
import torch
from helpers.small_deltas import PLAN, bits, net, reverted, same_bits, trained

import sparse_ft as sft

TOKENS = torch.arange(12).view(2, 6)


def test_the_base_of_a_model_with_deltas():
    base = net()
    before = bits(base)
    sft.apply(base, sft.Delta.of(trained({"layers.0.weight": sft.Rows([1])})))
    sft.apply(base, sft.Delta.of(trained()), force=True)
    after = bits(base)
    with sft.disabled(base):
        assert same_bits(base, before)
    assert same_bits(base, after)


def test_a_backward_after_it():
    """A reference forward between policy forward and backward, as preference losses do."""
    model, twin = (sft.apply(net().eval(), sft.Delta.of(trained())) for _ in range(2))
    loss = model(TOKENS).pow(2).mean()
    with sft.disabled(model):
        reference = model(TOKENS)
        assert not reference.requires_grad
    loss.backward()
    twin(TOKENS).pow(2).mean().backward()
    for mine, other in zip(model.parameters(), twin.parameters()):
        assert torch.equal(mine.grad, other.grad)
    assert torch.equal(reference, net().eval()(TOKENS))


def test_after_an_error_in_it():
    model = sft.apply(net(), sft.Delta.of(trained()))
    after = bits(model)
    with pytest.raises(RuntimeError, match="mine"), sft.disabled(model):
        raise RuntimeError("mine")
    assert same_bits(model, after)


def test_nothing_to_take_out_is_refused():
    with pytest.raises(ValueError, match="model: nothing is in it"), sft.disabled(net()):
        pass
    with (
        pytest.raises(
            ValueError, match="model: nothing tells what 'embed.weight' held.*origin=True"
        ),
        sft.disabled(trained()),
    ):
        pass


def without_buffers(bits_of_model):
    return {name: each for name, each in bits_of_model.items() if "batch_norm" not in name}


@pytest.mark.parametrize(
    "dtype, values_dtype",
    [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, torch.bfloat16)],
    ids=str,
)
def test_the_base_of_a_converted_model(dtype, values_dtype):
    model = trained(dtype=dtype, origin=True, values_dtype=values_dtype)
    model.eval()
    values = {name: each.detach().clone() for name, each in model.named_parameters()}
    after, base = bits(model), net(dtype)
    base.batch_norm.load_state_dict(model.batch_norm.state_dict())
    with sft.disabled(model):
        assert same_bits(without_buffers(bits(reverted(model))), without_buffers(bits(net(dtype))))
        assert torch.equal(model(TOKENS), base.eval()(TOKENS))
        assert torch.equal(model(TOKENS), base(TOKENS))
    assert same_bits(model, after)
    assert all(torch.equal(each, values[name]) for name, each in model.named_parameters())


def test_training_goes_on_as_if_it_had_not_been():
    """A reference forward between each forward and its backward; the same losses and weights."""

    def train(with_reference):
        model = net()
        sft.convert(model, PLAN, origin=True)
        optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
        for _ in range(4):
            loss = model.eval()(TOKENS).pow(2).mean()
            if with_reference:
                with sft.disabled(model):
                    reference = model(TOKENS)
                assert torch.equal(reference, net().eval()(TOKENS))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    assert same_bits(train(True), train(False))


def test_a_compiled_forward_is_the_base_too():
    """It writes `values` over the weight, whatever was there."""
    x = torch.randn(3, 12)
    root = torch.nn.Sequential(net().layers[0])
    sft.convert(root, {"0.weight": sft.Rows([1, 2])}, origin=True)
    with torch.no_grad():
        root[0].values += 1
    compiled = torch.compile(root, fullgraph=True, backend="eager")
    trained_output = compiled(x).detach()
    with sft.disabled(root):
        assert torch.equal(compiled(x), net().layers[0](x))
    assert torch.equal(compiled(x), trained_output)


def test_a_delta_in_it_and_training_on_top():
    delta = sft.Delta.of(trained({"layers.1.weight": sft.Rows([3])}))
    base = sft.apply(net(), delta)
    sft.convert(base, {"layers.1.weight": sft.Rows([3, 4])}, origin=True)
    with torch.no_grad():
        base.layers[1].values += 1
    after = bits(base)
    with sft.disabled(base):
        assert torch.equal(base.layers[1].weight, net().layers[1].weight)
    assert same_bits(base, after)


def test_what_trains_whole_without_an_origin_is_named():
    model = trained({"layers.0.weight": sft.Rows([1]), "head.bias": "all"}, origin=True)
    model.head.bias = torch.nn.Parameter(model.head.bias.detach())  # replaced since
    with pytest.warns(UserWarning, match="disabled: head.bias train whole"), sft.disabled(model):
        pass
