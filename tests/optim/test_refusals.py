"""What SelectiveAdamW refuses, by name."""

import pytest
import torch
from helpers.small_net import net
from torch import nn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, r"lr: .*-1\.0"),
        ({"lr": float("nan")}, "lr: .*nan"),
        ({"lr": torch.ones(2)}, r"lr: .*\(2,\)"),
        ({"eps": -1e-8}, "eps: .*-1e-08"),
        ({"weight_decay": -0.1}, r"weight_decay: .*-0\.1"),
        ({"betas": (1.0, 0.9)}, r"betas: .*1\.0 at position 0"),
        ({"betas": (0.9, -0.1)}, r"betas: .*-0\.1 at position 1"),
        ({"no_decay": "*.bias"}, r"no_decay: .*named_parameters"),
        ({"betas": (0.9,)}, "betas: .*two"),
        ({"betas": 0.9}, "betas: .*two"),
        ({"lr": "fast"}, "lr: .*'fast'"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        sft.SelectiveAdamW(net().parameters(), **settings)


@pytest.mark.parametrize(
    "settings",
    [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"eps": -1.0}, {"weight_decay": -1.0}],
    ids=str,
)
def test_bad_settings_of_a_group_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        sft.SelectiveAdamW([{"params": net().parameters(), **settings}])


def test_nothing_to_train_is_refused():
    model = nn.Linear(2, 2).requires_grad_(False)
    for params in (model.parameters(), [{"params": model.parameters()}], [], model.weight):
        with pytest.raises(ValueError, match="params: .*convert"):
            sft.SelectiveAdamW(params)


@pytest.mark.parametrize(
    "params, message",
    [(nn.Linear(2, 2), "Linear; pass model.parameters"), (["w"], "tensors.*'w'")],
    ids=str,
)
def test_what_is_no_parameter_is_refused(params, message):
    with pytest.raises(TypeError, match=f"params: .*{message}"):
        sft.SelectiveAdamW(params)


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = sft.SelectiveAdamW(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="grad: .*sparse"):
        optimizer.step()
