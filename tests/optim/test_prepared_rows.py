"""What a step prepares once for a parameter follows that parameter's tensors, whatever is done to
them.
"""

import contextlib
import copy
import gc

import pytest
import torch
from helpers.small_net import (
    assert_same_bits,
    assert_weights_show_values,
    everything,
    loss_of,
    net,
    trained_parameters,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import sparse_ft as sft


class Listening(TorchDispatchMode):
    """Nothing but operators: who steps under it goes through the op, for every tensor anew."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def moved(tensor):
    tensor.data = tensor.data.clone()


CHANGES = {
    "nothing": lambda model, optimizer: None,
    "values moved": lambda model, optimizer: [moved(p) for p in trained_parameters(model)],
    "weight moved": lambda model, optimizer: moved(model.first._parameters["weight"]),
    "weight replaced": lambda model, optimizer: model.first.register_parameter(
        "weight", nn.Parameter(model.first.weight.detach().clone(), requires_grad=False)
    ),
    "state moved": lambda model, optimizer: [
        moved(t) for s in optimizer.state.values() for t in s.values()
    ],
    "state loaded": lambda model, optimizer: optimizer.load_state_dict(
        copy.deepcopy(optimizer.state_dict())
    ),
    "moments exchanged": lambda model, optimizer: [
        s.update(exp_avg=s["exp_avg_sq"], exp_avg_sq=s["exp_avg"].abs())
        for s in optimizer.state.values()
    ],
    "gradients strided": lambda model, optimizer: [
        setattr(p, "grad", torch.stack((p.grad, p.grad), -1)[..., 0])
        for p in trained_parameters(model)
    ],
    "gradients with the negative bit": lambda model, optimizer: [
        setattr(p, "grad", torch._neg_view(-p.grad)) for p in trained_parameters(model)
    ],
    "gradients without memory": lambda model, optimizer: [
        setattr(p, "grad", torch._efficientzerotensor(p.shape)) for p in trained_parameters(model)
    ],
    "values with the negative bit": lambda model, optimizer: [
        setattr(p, "data", torch._neg_view(-p.data)) for p in trained_parameters(model)
    ],
    "values whose memory is negated": lambda model, optimizer: [
        setattr(p, "data", torch._neg_view(p.data)) for p in trained_parameters(model)
    ],
    "state with the negative bit": lambda model, optimizer: [
        s.update({name: torch._neg_view(-t) for name, t in s.items()})
        for s in optimizer.state.values()
    ],
    "cast": lambda model, optimizer: model.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_prepared_for_a_parameter_follows_its_tensors(change):
    """Steps from prepared rows and steps through the op, with a change between two of them.

    The same bits.
    """
    ends = []
    for mode in (contextlib.nullcontext(), Listening()):
        model = net()
        optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2)
        for seed in range(4):
            optimizer.zero_grad()
            dtype = next(model.parameters()).dtype
            loss_of(model, seed).to(dtype).backward()
            if seed == 2:
                CHANGES[change](model, optimizer)
                if change == "cast":
                    optimizer.load_state_dict(optimizer.state_dict())
                    continue
            with mode:
                optimizer.step()
        assert_weights_show_values(model)
        ends.append(everything(model, optimizer))
    assert_same_bits(*ends)


def test_an_edited_index_is_refused_by_a_step_too():
    model = nn.Linear(4, 4)
    sft.convert(model, {"weight": sft.Entries([1, 2])})
    optimizer = sft.SelectiveAdamW(model.parameters())
    for _ in range(2):
        model.values.grad = torch.ones_like(model.values)
        optimizer.step()
    model.selection.index.add_(10**6)
    with pytest.raises(ValueError, match="index: it was changed in place"):
        optimizer.step()


def test_the_link_follows_replaced_parameters():
    """The weight is resolved at step time.

    Values that no module holds any more train as a plain parameter.
    """
    linear = nn.Linear(4, 4)
    sft.convert(linear, {"weight": sft.Rows([1, 2])})
    linear._parameters["weight"] = nn.Parameter(torch.zeros(4, 4), requires_grad=False)
    linear.values = nn.Parameter(torch.ones(2, 4))
    values = linear.values
    optimizer = sft.SelectiveAdamW(linear.parameters(), 0.5, weight_decay=0)
    values.grad = torch.ones_like(values)
    optimizer.step()
    torch.testing.assert_close(
        linear.weight, torch.tensor([[0.0], [0.5], [0.5], [0.0]]).expand(4, 4)
    )
    del linear
    gc.collect()
    optimizer.step()
    torch.testing.assert_close(values.detach(), torch.zeros(2, 4))
