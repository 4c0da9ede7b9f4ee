"""disabled: the base for a while, between a forward and its backward too."""

import pytest
import torch
from helpers.small_deltas import bits, net, same_bits, trained

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
