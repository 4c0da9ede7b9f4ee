"""Selected entries over a quantised base train as over its dequantised weights."""

import pytest
import torch
from helpers.quantised import FORMATS, HIDDEN, dense_twin, network, plan_of, quantise
from torch import nn

import sparse_ft as sft

KINDS = ("rows", "columns", "blocks", "entries")
STEPS = 30


def batches():
    """One input and one target, the same in every step."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(16, HIDDEN, generator=generator)
    return inputs, torch.randn(16, HIDDEN, generator=generator)


def curve(model, optimizer, after_backward=lambda: None):
    """The loss of every step."""
    inputs, targets = batches()
    losses = []
    for _ in range(STEPS):
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        after_backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def masked(model, plan):
    """Dense training of `model` in which the gradient is nought but at the selected entries."""
    weights = {name: model.get_parameter(name) for name in plan}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in weights)
    masks = {name: what.mask(weights[name].shape) for name, what in plan.items()}

    def mask():
        for name, weight in weights.items():
            weight.grad *= masks[name]

    optimizer = torch.optim.AdamW(weights.values(), lr=1e-2, weight_decay=0)
    return curve(model, optimizer, mask)


@pytest.mark.parametrize("form", FORMATS)
def test_every_structure_trains_as_the_dequantised_base(form):
    base = quantise(network(), form)
    for kind in KINDS:
        plan = plan_of(base, kind)
        twin = dense_twin(base)
        expected = masked(twin, plan)
        for make in (sft.SelectiveAdamW, torch.optim.AdamW):
            model = quantise(network(), form)
            report = sft.convert(model, plan)
            assert report.trainable == sum(p.nnz(s) for p, s in matrices(model, plan))
            optimizer = make(model.parameters(), lr=1e-2, weight_decay=0)
            losses = curve(model, optimizer)
            assert losses == pytest.approx(expected, rel=1e-3), (form, kind)
            assert losses[-1] < 0.99 * losses[0]
            for name, what in plan.items():
                module = model.get_submodule(name.removesuffix(".weight"))
                trained = what.gather(twin.get_parameter(name).detach())
                torch.testing.assert_close(module.values.detach(), trained, rtol=1e-3, atol=1e-4)


def matrices(model, plan):
    return [(what, sft.matrix_shape(model, name)) for name, what in plan.items()]
