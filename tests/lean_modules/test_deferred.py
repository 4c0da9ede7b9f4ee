"""Logits that are made only where somebody looks.

Each operation gives what it gives of whole logits; the loss needs none.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparse_ft as sft
from sparse_ft.lean_modules.deferred import DeferredLogits
from sparse_ft.lean_modules.linear import linear_forward

pytestmark = pytest.mark.usefixtures("made_on_device")

CLASSES, FEATURES = 11, 6


def pair(bias=False, dtype=torch.float64):
    """(deferred logits [2, 5, V], the same made, what gets gradients)"""
    torch.manual_seed(0)
    head = nn.Linear(FEATURES, CLASSES, bias=bias, dtype=dtype)
    hidden = torch.randn(2, 5, FEATURES, dtype=dtype, requires_grad=True)
    return (
        DeferredLogits.of(head, hidden, linear_forward),
        head(hidden),
        [hidden, *head.parameters()],
    )


TARGET = torch.tensor([[1, 2, -100, 4, 10], [-100, 0, 5, 5, 9]])
MASK = TARGET != -100
LOSSES = {
    "shifted labels": lambda x: F.cross_entropy(x.float().view(-1, CLASSES), TARGET.view(-1)),
    "view by size": lambda x: F.cross_entropy(x.view(-1, x.size(-1)), TARGET.view(-1)),
    "view of two -1": lambda x: F.cross_entropy(x.reshape(10, -1), TARGET.view(-1)),
    "shifted logits": lambda x: F.cross_entropy(
        x[..., :-1, :].contiguous().view(-1, CLASSES), TARGET[..., 1:].reshape(-1)
    ),
    "slice of tokens": lambda x: F.cross_entropy(x[:, 1:].flatten(0, 1), TARGET[:, 1:].flatten()),
    "chosen by a mask": lambda x: F.cross_entropy(x[MASK], TARGET[MASK]),
    "sum": lambda x: F.cross_entropy(x.flatten(0, 1), TARGET.flatten(), reduction="sum") / 7,
    "another ignored": lambda x: F.cross_entropy(
        x[1, :].unsqueeze(0).flatten(0, 1), TARGET[1].clamp(0), ignore_index=5
    ),
    "module": lambda x: nn.CrossEntropyLoss()(x.view(-1, CLASSES), TARGET.view(-1)),
    "by name": lambda x: F.cross_entropy(input=x.view(-1, CLASSES), target=TARGET.view(-1)),
    "to": lambda x: F.cross_entropy(x.to(dtype=torch.float64).view(-1, CLASSES), TARGET.view(-1)),
    "times a number": lambda x: F.cross_entropy((x * 0.5).view(-1, CLASSES), TARGET.view(-1)),
    "over a number": lambda x: F.cross_entropy((x / 3).view(-1, CLASSES), TARGET.view(-1)),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("bias", [False, True])
def test_the_loss_is_taken_from_the_hidden_states(name, bias):
    deferred, whole, inputs = pair(bias)
    got, want = LOSSES[name](deferred), LOSSES[name](whole)
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    for a, b in zip(
        torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)
    falls_back = name == "another ignored" or (bias and "number" in name)
    assert deferred.origin.took_loss is not falls_back
    assert (deferred.origin.made_by is not None) is falls_back


MADE = {
    "softmax": lambda x: x.softmax(-1),
    "tanh": lambda x: torch.tanh(x / 2) * 2,
    "sum of both": lambda x: x.float().sum() + x.view(-1, CLASSES)[3].sum(),
    "one token": lambda x: x[:, -1],
    "classes": lambda x: x[..., :3],
    "classes by a view": lambda x: x.view(2, -1),
    "new dimension": lambda x: x[:, None],
    "plus a tensor": lambda x: torch.ones(CLASSES, dtype=x.dtype) + x,
    "in place": lambda x: x.mul_(2),
    "label smoothing": lambda x: F.cross_entropy(
        x.view(-1, CLASSES), TARGET.view(-1), label_smoothing=0.1
    ),
    "weights of classes": lambda x: F.cross_entropy(
        x.view(-1, CLASSES), TARGET.view(-1), weight=torch.arange(1.0, CLASSES + 1, dtype=x.dtype)
    ),
    "no reduction": lambda x: F.cross_entropy(
        x.view(-1, CLASSES), TARGET.view(-1), reduction="none"
    ),
    "classes in the middle": lambda x: F.cross_entropy(x.transpose(1, 2), TARGET),
    "probabilities": lambda x: F.cross_entropy(
        x.view(-1, CLASSES), torch.full((10, CLASSES), 1 / CLASSES, dtype=x.dtype)
    ),
    "stack": lambda x: torch.stack([x, x]),
    "out of a dict": lambda x: torch.cat(tensors=[x, x]),
}


@pytest.mark.parametrize("name", MADE)
def test_everything_else_makes_them(name):
    deferred, whole, inputs = pair()
    want, got = MADE[name](whole.clone()), MADE[name](deferred)
    assert torch.equal(got + 0, want) and deferred.origin.made_by is not None
    made = torch.autograd.grad(got.sum(), inputs)
    for a, b in zip(made, torch.autograd.grad(want.sum(), inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_known_is_told_without_making_them():
    deferred, whole, _ = pair()
    for logits in (deferred, whole):
        told = (
            logits.shape,
            logits.dtype,
            logits.device,
            logits.dim(),
            logits.ndim,
            logits.size(1),
            logits.numel(),
            len(logits),
        )
        assert told == (whole.shape, whole.dtype, whole.device, 3, 3, 5, 110, 2)
    assert deferred.origin.made_by is None


def test_they_are_made_once_and_with_gradients():
    deferred, whole, inputs = pair()
    with torch.no_grad():
        best = deferred.argmax(-1)
    assert torch.equal(best, whole.argmax(-1)) and deferred.dense() is deferred.dense()
    assert all(g.any() for g in torch.autograd.grad(deferred.square().sum(), inputs))


def test_under_autocast_as_the_head_was_called(device):
    head, hidden = nn.Linear(FEATURES, CLASSES), torch.randn(2, 5, FEATURES, requires_grad=True)
    with torch.autocast(device.type, torch.bfloat16):
        deferred, whole = DeferredLogits.of(head, hidden, linear_forward), head(hidden)
    assert deferred.dtype == torch.bfloat16 and torch.equal(deferred + 0, whole)
    with torch.autocast(device.type, torch.bfloat16):
        losses = [
            LOSSES["shifted labels"](x)
            for x in (DeferredLogits.of(head, hidden, linear_forward), whole)
        ]
    assert losses[0].dtype == losses[1].dtype and abs(losses[0] - losses[1]) < 2e-2


def test_hidden_states_that_change_are_noticed():
    head, hidden = nn.Linear(FEATURES, CLASSES), torch.randn(5, FEATURES)
    deferred = DeferredLogits.of(head, hidden, linear_forward)
    hidden.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        deferred.sum()
    with pytest.raises(RuntimeError, match="changed in place"):
        F.cross_entropy(deferred, torch.zeros(5, dtype=torch.long))


def test_a_selected_head():
    torch.manual_seed(0)
    plain = nn.Linear(FEATURES, CLASSES)
    selection = sft.Columns([0, 3])
    head = sft.nn.SelectiveLinear.from_linear(copy.deepcopy(plain), selection)
    hidden = torch.randn(10, FEATURES)
    F.cross_entropy(DeferredLogits.of(head, hidden, linear_forward), TARGET.view(-1)).backward()
    F.cross_entropy(plain(hidden), TARGET.view(-1)).backward()
    torch.testing.assert_close(head.values.grad, selection.gather(plain.weight.grad))
    torch.testing.assert_close(head.bias.grad, plain.bias.grad)
