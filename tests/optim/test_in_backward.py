"""SelectiveAdamW(in_backward=True).

The same bits as the ordinary step, one gradient alive at a time, refusals by name.
"""

import copy
import gc
import io
import pickle
import warnings
import weakref

import pytest
import torch
from helpers.small_net import (
    assert_same_bits,
    assert_weights_show_values,
    everything,
    loss_of,
    net,
    train,
    trained_parameters,
    weights,
)
from helpers.warned import messages_of
from torch import nn
from torch.utils.checkpoint import checkpoint

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")


def two_ends(run):
    """(model, optimiser) after `run(model, make)` without and with in_backward.

    make(params, …) makes the optimiser.
    """
    ends = []
    for flags in ({}, {"in_backward": True}):
        model = net()
        ends.append(
            (model, run(model, lambda *a, flags=flags, **k: sft.SelectiveAdamW(*a, **k, **flags)))
        )
    return ends


def assert_same_ends(ends):
    (model, optimizer), (other, again) = ends
    assert_same_bits(everything(other, again), everything(model, optimizer))
    assert_weights_show_values(other)
    assert all(p.grad is None for p in other.parameters())


# The same step.


def test_same_bits_with_groups_and_a_scheduler():
    def run(model, make):
        params = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": params[:3], "lr": 3e-2},
            {"params": params[3:6], "maximize": True},
            {"params": params[6:]},
        ]
        optimizer = make(groups, 1e-2, weight_decay=0.1)
        train(
            model,
            optimizer,
            8,
            scheduler=torch.optim.lr_scheduler.OneCycleLR(
                optimizer, [0.1, 0.2, 0.05], total_steps=9
            ),
        )
        return optimizer

    assert_same_ends(two_ends(run))


def test_same_bits_with_a_group_added_later_and_a_closure():
    def run(model, make):
        *most, last = trained_parameters(model)
        optimizer = make(most, 1e-2)
        optimizer.add_param_group({"params": [last], "lr": 0.1})

        def closure():
            optimizer.zero_grad()
            loss = loss_of(model, 7)
            loss.backward()
            return loss

        assert optimizer.step(closure) > 0
        train(model, optimizer, 2)
        optimizer.zero_grad()
        return optimizer

    assert_same_ends(two_ends(run))


class Twice(nn.Module):
    """Each layer is used more than once in a forward.

    Replaced, aliased, and tied ones that train whole.
    """

    def __init__(self):
        super().__init__()
        self.layer, self.conv = nn.Linear(8, 8), nn.Conv1d(8, 8, 3, padding=1)
        self.embed, self.head = nn.Embedding(6, 8), nn.Linear(8, 6, bias=False)
        self.head.weight = self.embed.weight

    def block(self, x):
        return torch.tanh(self.layer(x) + self.conv(x.transpose(1, 2)).transpose(1, 2))

    def forward(self, tokens, call=lambda block, x: block(x)):
        x = self.embed(tokens)
        for _ in range(3):
            x = call(self.block, x)
        return self.head(x)


TWICE = {
    "layer.weight": sft.Entries([0, 9, 33]),
    "layer.bias": "all",
    "conv.weight": sft.Rows([1, 5]),
    "embed.weight": "all",
}
TOKENS = torch.arange(12).reshape(3, 4) % 6
CALLS = {
    "plain": lambda block, x: block(x),
    "checkpoint": lambda block, x: checkpoint(block, x, use_reentrant=False),
    "one reentrant": lambda block, x: checkpoint(block, x, use_reentrant=True),
}


def twice(call, **flags):
    torch.manual_seed(0)
    model = Twice()
    sft.convert(model, TWICE)
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2, **flags)
    for _ in range(3):
        model(TOKENS, call).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.mark.parametrize("how", ["plain", "checkpoint"])
def test_a_layer_used_twice_and_tied_weights_step_once_on_the_whole_gradient(how):
    assert_same_ends([twice(CALLS[how]), twice(CALLS[how], in_backward=True)])


def test_a_layer_in_several_reentrant_checkpoints_is_refused():
    """Each runs a backward of its own, and the first has stepped when the second one comes."""
    with pytest.raises(
        RuntimeError,
        match="(layer|conv)[.].*: a second gradient before optimizer.step.*use_reentrant=False",
    ):
        twice(CALLS["one reentrant"], in_backward=True)


def test_reentrant_checkpoints_of_different_layers():
    ends = []
    for flags in ({}, {"in_backward": True}):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)))
        sft.convert(model, {f"{i}.0.weight": sft.Columns([1, i + 2]) for i in range(3)})
        optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2, **flags)
        for _ in range(3):
            x = torch.ones(4, 8, requires_grad=True)
            for part in model:
                x = checkpoint(part, x, use_reentrant=True)
            x.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append((model, optimizer))
    assert_same_ends(ends)


def test_a_weight_read_past_its_layer_waits_for_that_gradient():
    ends = []
    for flags in ({}, {"in_backward": True}):
        torch.manual_seed(0)
        layer = nn.Linear(4, 4, bias=False)
        sft.convert(layer, {"weight": sft.Rows([1])})
        optimizer = sft.SelectiveAdamW(layer.parameters(), 1e-2, **flags)
        x = torch.ones(2, 4, requires_grad=True)
        layer(torch.nn.functional.linear(x, layer.weight)).sum().backward()
        optimizer.step()
        ends.append((layer, optimizer))
        assert x.grad.any()
    assert_same_ends(ends)


def test_a_stored_weight_read_past_its_layer_raises_instead_of_a_wrong_gradient():
    """The first product saved the weight, and no gradient of the layer waits for its backward."""
    layer = nn.Linear(4, 4, bias=False)
    sft.convert(layer, {"weight": sft.Rows([1])})
    optimizer = sft.SelectiveAdamW(layer.parameters(), 1e-2, in_backward=True)
    x = torch.ones(2, 4, requires_grad=True)
    hidden = torch.nn.functional.linear(x, dict(layer.named_parameters())["weight"])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        layer(hidden).sum().backward()
    assert optimizer.state


def test_what_a_lean_model_makes_again_is_made_of_the_old_weights():
    ends = []
    for flags in ({}, {"in_backward": True}):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(8, 8), nn.RMSNorm(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)
        )
        plan = {f"{i}.weight": sft.Entries([3, 8 * i + 5]) for i in (0, 2, 4)}
        sft.convert(model, {**plan, "1.weight": "all"}, lean=True)
        optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2, **flags)
        for seed in range(3):
            model(
                torch.randn(
                    5, 8, generator=torch.Generator(torch.get_default_device()).manual_seed(seed)
                )
            ).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append((model, optimizer))
    assert_same_ends(ends)


# Life of an optimiser.


@pytest.mark.parametrize("saved_by, loaded_by", [(True, True), (False, True), (True, False)])
def test_resumes_bit_for_bit(saved_by, loaded_by):
    model, other = net(), net(seed=1)
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2, in_backward=saved_by)
    train(model, optimizer, 2)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file)
    again = sft.SelectiveAdamW(other.parameters(), 1.0, in_backward=loaded_by)
    other.load_state_dict(loaded["model"])
    again.load_state_dict(loaded["optimizer"])
    train(model, optimizer, 2, start=2)
    train(other, again, 2, start=2)
    assert_same_bits(everything(other, again), everything(model, optimizer))


@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))],
    ids=["deepcopy", "pickle"],
)
def test_model_and_optimizer_copied_together_train_on_alike(clone):
    model = net()
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2, in_backward=True)
    train(model, optimizer, 2)
    twin, again = clone((model, optimizer))
    train(model, optimizer, 2, start=2)
    train(twin, again, 2, start=2)
    assert_same_ends([(model, optimizer), (twin, again)])


def test_an_optimizer_that_is_gone_steps_no_more():
    model = net()
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2, in_backward=True)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    before = weights(model)
    loss_of(model, 0).backward()
    assert_same_bits(weights(model), before)
    assert all(p.grad is not None for p in trained_parameters(model))


def test_a_selection_without_a_gradient_is_reported_and_others_are_not():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    sft.convert(model, {"0.weight": sft.Rows([1]), "1.weight": sft.Rows([1])})
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2, in_backward=True)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        model[0](torch.ones(2, 4)).sum().backward()
        optimizer.step()
    assert [message[:8] for message in messages_of(found)] == ["1.weight"]


class Failing(torch.autograd.Function):
    """Its backward raises while `on` is set."""

    on = False

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad_output):
        if Failing.on:
            raise RuntimeError("planted")
        return grad_output


def two_layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    sft.convert(
        model, {"0.weight": sft.Rows([1]), "1.weight": sft.Columns([0, 2]), "1.bias": "all"}
    )
    return model


def loss_through_failing(model, seed):
    x = torch.randn(5, 4, generator=torch.Generator(torch.get_default_device()).manual_seed(seed))
    return model[1](Failing.apply(model[0](x))).square().mean()


def test_training_goes_on_after_a_backward_that_failed(monkeypatch):
    """Layers behind the failure have stepped, those before it have not.

    Then as if the second batch had come.
    """
    model, other = two_layers(), two_layers()
    optimizer = sft.SelectiveAdamW(model.named_parameters(), 0.1, in_backward=True)
    plain = sft.SelectiveAdamW(other.named_parameters(), 0.1)
    monkeypatch.setattr(Failing, "on", True)
    for each in (model, other):
        with pytest.raises(RuntimeError, match="planted"):
            loss_through_failing(each, 0).backward()
    plain.step()  # on what gradients there are
    plain.zero_grad()
    monkeypatch.setattr(Failing, "on", False)
    with pytest.raises(
        RuntimeError, match=r"a second gradient .* optimizer.zero_grad\(\) lets the next one begin"
    ):
        loss_through_failing(model, 1).backward()
    with pytest.warns(
        UserWarning,
        match="in_backward: 2 parameters have stepped in a backward that .* did not follow",
    ):
        optimizer.zero_grad()
    for seed in (2, 3):
        for each, of_each in (model, optimizer), (other, plain):
            loss_through_failing(each, seed).backward()
            of_each.step()
            of_each.zero_grad()
    assert_same_ends([(model, optimizer), (other, plain)])
    assert (
        optimizer.state[model[0].values]["step"] == 2
        and optimizer.state[model[1].values]["step"] == 3
    )


def test_zero_grad_before_step_reports_no_selection_as_without_a_gradient():
    model = two_layers()
    optimizer = sft.SelectiveAdamW(model.parameters(), 0.1, in_backward=True)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        loss_through_failing(model, 0).backward()
        optimizer.zero_grad()
        optimizer.step()
        optimizer.zero_grad()
    (message,) = messages_of(found)
    assert message.startswith("in_backward: 3 parameters have stepped")


@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize("in_backward", [False, True])
def test_copies_of_copies_step_where_the_first_one_did(clone, in_backward):
    pair = net(), None
    pair = pair[0], sft.SelectiveAdamW(pair[0].parameters(), 1e-2, in_backward=in_backward)
    for _ in range(3):
        pair = clone(pair)
        model, optimizer = pair
        before = weights(model)
        loss_of(model, 0).backward()
        moved = any(
            not torch.equal(weight, before[name]) for name, weight in weights(model).items()
        )
        assert moved == in_backward
        assert all((p.grad is None) == in_backward for p in trained_parameters(model))
        optimizer.step()
        optimizer.zero_grad()
