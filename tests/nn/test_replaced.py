"""Modules that are copied, and parameters that are replaced, shared, moved or called
with others.
"""

import copy
import gc
import pickle

import pytest
import torch
from helpers.small_linear import SELECTIONS, backward, make, shows
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")


@pytest.fixture(params=SELECTIONS)
def selection(request):
    return SELECTIONS[request.param]


@pytest.mark.parametrize(
    "twin", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_are_whole_and_separate(selection, twin):
    module = make(selection)
    other = twin(module)
    assert other.selection == module.selection
    backward(other)
    before = module.values.detach().clone()
    sft.SelectiveAdamW([other.values], lr=0.1).step()
    assert shows(other), "the copy has a link of its own"
    assert torch.equal(module.values, before)
    backward(module)
    torch.optim.AdamW([module.values], lr=0.1, fused=True).step()
    module(torch.randn(1, 10))
    assert shows(module)


def test_replaced_parameters(selection):
    module = make(selection)
    module.values = nn.Parameter(module.values.detach() + 1)
    module(torch.randn(1, 10))
    assert shows(module)
    backward(module)
    torch.optim.SGD([module.values], lr=0.1, fused=True).step()
    module(torch.randn(1, 10))
    assert shows(module), "the new parameter is linked"
    module.weight = nn.Parameter(torch.zeros(7, 10), requires_grad=False)
    with pytest.warns(UserWarning, match="Linear.weight: .*behind the module's back"):
        module(torch.randn(1, 10))
    assert shows(module)


def test_a_weight_of_another_size_is_refused_by_name(selection):
    module = make(selection)
    module.weight = nn.Parameter(torch.zeros(3, 10), requires_grad=False)
    with pytest.raises(ValueError, match=r"weight: .*\(7, 10\), .*\(3, 10\)"):
        module(torch.randn(1, 10))


def large():
    """Its values are so many that the allocator gives their address to the next tensor of their
    size.
    """
    return sft.nn.SelectiveLinear.from_linear(nn.Linear(512, 512), sft.Columns(list(range(256))))


def test_an_address_that_is_used_again_is_no_sign_of_the_same_values():
    module, x = large(), torch.randn(2, 512)
    for number in range(4):
        with torch.no_grad():
            torch.func.functional_call(
                module, {"values": torch.full((512, 256), float(number))}, (x,)
            )
        assert module._parameters["weight"][0, 0] == number
    for number in range(4, 8):
        del module._parameters["values"]
        module.values = nn.Parameter(torch.full((512, 256), float(number)))
        module(x)
        assert module._parameters["weight"][0, 0] == number
    for number in range(8, 12):
        module.values.data = torch.full((512, 256), -1.0)
        module.values.data = torch.full((512, 256), float(number))
        module(x)
        assert module._parameters["weight"][0, 0] == number


def test_an_optimizer_of_values_that_were_replaced_does_not_touch_the_weight(selection):
    module = make(selection)
    optimizer = sft.SelectiveAdamW([module.values], lr=1.0)
    backward(module)
    module.values = nn.Parameter(module.values.detach() + 1)
    module(torch.randn(1, 10))
    optimizer.step()
    assert shows(module)


def test_values_of_two_modules(selection):
    first, second = make(selection), make(selection)
    second.values = first.values
    for optimizer in (
        torch.optim.SGD([first.values], lr=0.1, fused=True),
        sft.SelectiveAdamW([first.values], lr=0.1),
    ):
        first.values.grad = torch.ones_like(first.values)
        optimizer.step()
        x = torch.randn(3, 10)
        assert torch.equal(first(x), second(x)) and shows(first) and shows(second)


def test_a_shallow_copy_does_not_take_the_link_away(selection):
    module = make(selection)
    copy.copy(module)
    gc.collect()
    backward(module)
    torch.optim.SGD([module.values], lr=0.1, fused=True).step()
    module(torch.randn(1, 10))
    assert shows(module)


def test_functional_call(selection):
    module, x = make(selection), torch.randn(3, 10)
    original = module.values.detach().clone()
    values = (original + 1).requires_grad_()
    out = torch.func.functional_call(module, {"values": values}, (x,))
    out.sum().backward()
    assert values.grad is not None
    dense = selection.scatter_(module._parameters["weight"].detach().clone(), values.detach())
    assert torch.equal(out, nn.functional.linear(x, dense, module.bias))
    module(x)
    assert torch.equal(module.values, original)
    assert shows(module)


def test_to_empty_and_meta(selection, device):
    module = make(selection).to("meta")
    assert module.values.device.type == "meta"
    assert module.selection.index.device.type == device.type
    module = module.to_empty(device=device)
    assert module.values.shape == selection.values_shape((7, 10))


def test_a_weight_moved_away_is_not_held_in_memory():
    module = make(SELECTIONS["rows"])
    storage = StorageWeakRef(module._parameters["weight"].untyped_storage())
    # As offloading does.
    module._parameters["weight"].data = module._parameters["weight"].data.clone()
    assert storage.expired()
    module(torch.randn(1, 10))
    assert shows(module)


def test_torch_func_is_refused_by_name(selection):
    module, x = make(selection), torch.randn(4, 10)
    values = module.values.detach()
    for transform in (
        lambda: torch.func.vmap(module)(x),
        lambda: torch.func.jacrev(module)(x),
        lambda: torch.func.grad(
            lambda v: torch.func.functional_call(module, {"values": v}, (x,)).sum()
        )(values),
    ):
        with pytest.raises(RuntimeError, match="Linear.weight: .*torch.func.*sft.revert"):
            transform()
    with torch.no_grad():
        assert torch.allclose(torch.func.vmap(module)(x), module(x))
