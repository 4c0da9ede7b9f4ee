"""What a step prepares once for a parameter follows that parameter's tensors, whatever is done to
them.
"""

import contextlib
import copy
import gc
import weakref
from types import SimpleNamespace

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
from sparse_ft.ops import _native
from sparse_ft.optim import gathering, prepared
from sparse_ft.optim.prepared import CHANGED

pytestmark = pytest.mark.usefixtures("made_on_device")


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
        setattr(p, "grad", torch._efficientzerotensor(p.shape, device=p.device))
        for p in trained_parameters(model)
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
    "a gradient missing": lambda model, optimizer: setattr(
        trained_parameters(model)[0], "grad", None
    ),
    "a gradient moved": lambda model, optimizer: moved(trained_parameters(model)[0].grad),
    "settings changed": lambda model, optimizer: optimizer.param_groups[0].update(
        lr=3e-2, betas=(0.5, 0.75), weight_decay=0.5, maximize=True
    ),
    "updates scaled": lambda model, optimizer: setattr(
        model.first._sparse_ft_state, "factor", torch.full_like(model.first.values, 0.5)
    ),
    "state begun anew": lambda model, optimizer: [
        optimizer.forget(p) for p in trained_parameters(model)
    ],
    "state in other tensors": lambda model, optimizer: [
        s.update({name: t.clone() for name, t in s.items()}) for s in optimizer.state.values()
    ],
    "parameters in another order": lambda model, optimizer: optimizer.param_groups[0][
        "params"
    ].reverse(),
    "cast": lambda model, optimizer: model.double(),
}
# After which each row is the one that was prepared.
HARMLESS = (
    "nothing",
    "a gradient missing",
    "a gradient moved",
    "settings changed",
    "parameters in another order",
)


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


@pytest.mark.skipif(_native.C is None, reason="no compiled part")
@pytest.mark.parametrize("change", CHANGES)
def test_only_what_is_as_it_was_is_known_without_python(change):
    model = net()
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2)
    for seed in range(3):
        optimizer.zero_grad()
        loss_of(model, seed).backward()
        if seed < 2:
            optimizer.step()
    assert changed_rows(optimizer) == 0
    CHANGES[change](model, optimizer)
    assert (changed_rows(optimizer) == 0) is (change in HARMLESS)


def changed_rows(optimizer):
    """How many parameters a step would have to prepare."""
    with torch.no_grad():
        batches = optimizer._gathered.batches(optimizer.param_groups, optimizer.state)
    return sum([*batch.linked_at, *batch.others_at].count(CHANGED) for batch in batches)


def test_the_same_bits_without_the_compiled_pass(monkeypatch):
    """And with a GradScaler's word, for which the rows are looked at once more."""
    ends = []
    for found_inf in (None, torch.zeros(()), torch.zeros(())):
        if ends[1:]:
            monkeypatch.setattr(gathering, "_native", SimpleNamespace(C=None))
            monkeypatch.setattr(prepared, "_native", SimpleNamespace(C=None))
        model = net()
        optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2)
        for seed in range(4):
            optimizer.zero_grad()
            loss_of(model, seed).backward()
            if found_inf is not None:
                optimizer.found_inf = found_inf
            optimizer.step()
        ends.append(everything(model, optimizer))
    assert_same_bits(*ends[:2])
    assert_same_bits(*ends[1:])


def test_rows_of_two_optimisers_are_each_its_own():
    ends = []
    for mode in (contextlib.nullcontext(), Listening()):
        model = net()
        optimizers = [sft.SelectiveAdamW(model.parameters(), lr) for lr in (1e-2, 1e-3)]
        for seed in range(5):
            optimizer = optimizers[seed % 2]
            optimizer.zero_grad()
            loss_of(model, seed).backward()
            with mode:
                optimizer.step()
        assert_weights_show_values(model)
        ends.append([everything(model, optimizer) for optimizer in optimizers])
    for found, expected in zip(*ends):
        assert_same_bits(found, expected)


def test_a_sparse_gradient_is_refused_of_a_prepared_row_too():
    p = nn.Parameter(torch.ones(4, 4))
    optimizer = sft.SelectiveAdamW([p])
    for _ in range(2):
        p.grad = torch.ones(4, 4)
        optimizer.step()
    p.grad = torch.ones(4, 4).to_sparse()
    with pytest.raises(RuntimeError, match="grad: SelectiveAdamW takes dense gradients"):
        optimizer.step()


def test_an_optimiser_keeps_no_module_alive_between_steps():
    linear = nn.Linear(4, 4)
    sft.convert(linear, {"weight": sft.Rows([1, 2])})
    optimizer = sft.SelectiveAdamW(linear.parameters())
    for _ in range(3):
        linear.values.grad = torch.ones_like(linear.values)
        optimizer.step()
    module, weight = weakref.ref(linear), weakref.ref(linear._parameters["weight"])
    del linear
    gc.collect()
    assert module() is None and weight() is None


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
