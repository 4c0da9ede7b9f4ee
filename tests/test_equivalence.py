"""Training with a selection is dense training with the gradient masked and decay on the selected
entries only.
"""

import functools

import pytest
import torch
import transformers
from helpers import llama
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")

STEPS, EARLY = 200, 20
DECAY = 0.1


class WritesThroughData(torch.optim.Optimizer):
    """Plain SGD of the kind found in the wild.

    It writes through `.data`, which leaves version counters unmoved.
    """

    def __init__(self, params, lr):
        super().__init__(params, dict(lr=lr))

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.add_(p.grad.data, alpha=-group["lr"])


def adafactor(params):
    return transformers.Adafactor(
        params, lr=3e-3, scale_parameter=False, relative_step=False, weight_decay=DECAY
    )


def dense_run(make, settings, weight_decay=0.0, decoupled=True):
    """A function of (plan, dtype, steps, snapshots=...)."""

    def make_optimizer(weights):
        return make(weights, weight_decay=0, foreach=False, **settings)

    return functools.partial(
        llama.train_dense,
        make_optimizer=make_optimizer,
        weight_decay=weight_decay,
        decoupled=decoupled,
    )


DENSE = {
    "adamw": dense_run(torch.optim.AdamW, {"lr": 3e-3}, DECAY),
    "adam": dense_run(torch.optim.Adam, {"lr": 3e-3}, 1e-3, decoupled=False),
    "sgd": dense_run(torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}, 1e-3, decoupled=False),
    "plain sgd": dense_run(torch.optim.SGD, {"lr": 0.3}),
    "adafactor": functools.partial(llama.train_compact, make_optimizer=adafactor),
}

# optimiser -> its family and its constructor on model.parameters()
OPTIMIZERS = {
    "AdamW": ("adamw", lambda ps: torch.optim.AdamW(ps, 3e-3, weight_decay=DECAY, foreach=False)),
    "AdamW foreach": (
        "adamw",
        lambda ps: torch.optim.AdamW(ps, 3e-3, weight_decay=DECAY, foreach=True),
    ),
    "AdamW fused": (
        "adamw",
        lambda ps: torch.optim.AdamW(ps, 3e-3, weight_decay=DECAY, fused=True),
    ),
    "Adam": ("adam", lambda ps: torch.optim.Adam(ps, 3e-3, weight_decay=1e-3)),
    "Adam fused": ("adam", lambda ps: torch.optim.Adam(ps, 3e-3, weight_decay=1e-3, fused=True)),
    "SGD": ("sgd", lambda ps: torch.optim.SGD(ps, 0.05, momentum=0.9, weight_decay=1e-3)),
    "SGD fused": (
        "sgd",
        lambda ps: torch.optim.SGD(ps, 0.05, momentum=0.9, weight_decay=1e-3, fused=True),
    ),
    "writes through .data": ("plain sgd", lambda ps: WritesThroughData(ps, 0.3)),
    "Adafactor": ("adafactor", adafactor),
}


def selective_adamw(params):
    return sft.SelectiveAdamW(params, 3e-3, weight_decay=DECAY)


@functools.cache
def dense(structure, family, dtype):
    """The dense run's weights after EARLY and after STEPS steps.

    One run serves every optimiser of the family.
    """
    return DENSE[family](llama.plan_of(structure), dtype, STEPS, snapshots=(EARLY,))


def selective(structure, make_optimizer, dtype):
    """The selective run's weights at the same steps, after checks that it learnt and touched
    nothing else.
    """
    plan, model = llama.plan_of(structure), llama.tiny_llama(dtype)
    sft.convert(model, plan)
    losses, weights = llama.train(
        model, make_optimizer(model.parameters()), STEPS, plan, snapshots=(EARLY, STEPS)
    )
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5]), (
        "the model did not learn, so the comparison shows nothing"
    )
    llama.assert_unselected_untouched(model, plan, dtype)
    return weights


def check(structure, family, make_optimizer):
    exact = dense(structure, family, torch.float64)
    assert (
        llama.furthest(selective(structure, make_optimizer, torch.float64)[STEPS], exact[STEPS])
        < 1e-9
    )
    dense32, selective32 = (
        dense(structure, family, torch.float32),
        selective(structure, make_optimizer, torch.float32),
    )
    assert llama.furthest(selective32[EARLY], dense32[EARLY]) < 1e-6
    for far in (llama.furthest, llama.distance):
        assert far(selective32[STEPS], exact[STEPS]) <= 2 * far(dense32[STEPS], exact[STEPS])


@pytest.mark.parametrize("structure", llama.STRUCTURES)
def test_each_structure_with_selective_adamw(structure):
    check(structure, "adamw", selective_adamw)


@pytest.mark.parametrize("name", ["SelectiveAdamW", *OPTIMIZERS])
def test_each_optimizer_with_every_structure_in_one_model(name):
    family, make_optimizer = OPTIMIZERS.get(name, ("adamw", selective_adamw))
    check("mixed", family, make_optimizer)


# Writers that leave no trace, followed by sft.sync.


def edit_data(model):
    for parameter in trained(model):
        parameter.data.mul_(0.9)
    sft.sync(model)


def vector_round_trip(model):
    vector = nn.utils.parameters_to_vector(trained(model)).detach()
    nn.utils.vector_to_parameters(vector * 0.9, trained(model))
    sft.sync(model)


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("edit", [edit_data, vector_round_trip])
def test_training_goes_on_from_values_edited_without_a_trace(edit):
    """Ten steps, an edit of what trains, ten more.

    As in the dense run with the same entries edited.
    """
    plan, model = llama.plan_of("mixed"), llama.tiny_llama(torch.float64)
    dense, masks = llama.tiny_llama(torch.float64), llama.masks_of(llama.tiny_llama(), plan)
    sft.convert(model, plan)
    for phase in range(2):
        losses, _ = llama.train(model, torch.optim.SGD(model.parameters(), 0.3, fused=True), 10)
        masked_sgd(dense, masks, 10)
        if phase == 0:
            edit(model)
            for name, mask in masks.items():
                weight = dense.get_parameter(name).data
                weight.copy_(torch.where(mask, weight * 0.9, weight))
        assert llama.furthest(llama.weights_of(model, plan), llama.weights_of(dense, plan)) < 1e-9
    llama.assert_unselected_untouched(model, plan, torch.float64)


def masked_sgd(dense, masks, steps):
    for tokens in llama.batches(steps):
        dense.zero_grad()
        llama.loss_of(dense, tokens).backward()
        for name, mask in masks.items():
            dense.get_parameter(name).data.sub_(
                0.3 * dense.get_parameter(name).grad.masked_fill(~mask, 0)
            )


def test_moving_average_swapped_in_and_out():
    plan, model = llama.plan_of("mixed"), llama.tiny_llama(torch.float64)
    sft.convert(model, plan)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2)
    by_hand = llama.weights_of(model, plan)
    for step, tokens in enumerate(llama.batches(5)):
        optimizer.zero_grad()
        llama.loss_of(model, tokens).backward()
        optimizer.step()
        averaged.update_parameters(model)
        now = llama.weights_of(model, plan)
        by_hand = (
            now if step == 0 else {name: 0.5 * by_hand[name] + 0.5 * now[name] for name in plan}
        )
    assert llama.furthest(llama.weights_of(averaged.module, plan), by_hand) < 1e-12
    own = [p.detach().clone() for p in trained(model)]
    with torch.no_grad():
        expected = averaged(tokens).logits
    assert swapped_in(model, trained(averaged.module), tokens).equal(expected)
    assert llama.furthest(llama.weights_of(model, plan), by_hand) < 1e-12
    swapped_in(model, own, tokens)
    assert llama.furthest(llama.weights_of(model, plan), now) == 0
    llama.assert_unselected_untouched(model, plan, torch.float64)


def swapped_in(model, tensors, tokens):
    """What the model computes with `tensors` as its values, put there by bare `.data` copies."""
    for parameter, tensor in zip(trained(model), tensors, strict=True):
        parameter.data.copy_(tensor)
    sft.sync(model)
    with torch.no_grad():
        return model(tokens).logits
