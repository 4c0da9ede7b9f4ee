"""`values` is the authority, the weight shows a copy.

Each way in which the copy can go stale, and what tells.
"""

import copy
import warnings

import pytest
import torch
from helpers.small_linear import SELECTIONS, backward, make, shows
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")


@pytest.fixture(params=SELECTIONS)
def selection(request):
    return SELECTIONS[request.param]


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
        lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
        lambda p: torch.optim.AdamW(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
        lambda p: sft.SelectiveAdamW(p, lr=0.1),
    ],
    ids=["fused", "foreach", "plain", "sgd-fused", "ours"],
)
def test_forward_after_any_step_uses_the_new_values(selection, make_optimizer):
    module = make(selection)
    optimizer = make_optimizer([module.values])
    for _ in range(3):
        backward(module)
        before = module.values.detach().clone()
        optimizer.step()
        assert not torch.equal(before, module.values)
        x = torch.randn(2, 10)
        dense = module.selection.scatter_(
            module._parameters["weight"].detach().clone(), module.values.detach()
        )
        assert torch.equal(module(x), nn.functional.linear(x, dense, module.bias))
        assert shows(module)


def test_optimizer_that_writes_through_data(selection):
    class Writer(torch.optim.Optimizer):
        def step(self):
            for p in self.param_groups[0]["params"]:
                p.data.add_(1.0)

    module = make(selection)
    backward(module)
    version = module.values._version
    Writer([module.values], {}).step()
    assert module.values._version == version, "this writer should leave no version behind"
    assert not shows(module)
    module(torch.randn(2, 10))
    assert shows(module)


def test_our_step_writes_through_at_once(selection):
    module = make(selection)
    backward(module)
    sft.SelectiveAdamW([module.values], lr=0.1).step()
    assert shows(module)


def test_a_clean_module_never_touches_its_weight(selection):
    module = make(selection)
    version = module._parameters["weight"]._version
    for _ in range(3):
        module(torch.randn(2, 10))
        module.weight
        module.state_dict()
    assert module._parameters["weight"]._version == version


def test_two_graphs_alive(selection):
    module, x = make(selection), torch.randn(4, 10, requires_grad=True)
    first, second = module(x).sum(), module(2 * x).sum()
    second.backward()
    first.backward()
    alone = make(selection)
    (alone(x.detach()).sum() + alone(2 * x.detach()).sum()).backward()
    torch.testing.assert_close(module.values.grad, alone.values.grad)


def test_step_between_forward_and_backward_raises(selection):
    module, x = make(selection), torch.randn(4, 10, requires_grad=True)
    optimizer = sft.SelectiveAdamW([module.values], lr=0.1)
    loss = module(x).sum()
    backward(module)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_reads_of_weight_synchronise(selection):
    module = make(selection)
    with torch.no_grad():
        module.values.add_(1)
    assert not shows(module)
    module.weight
    assert shows(module)


def test_sync_serves_writers_that_leave_no_trace(selection):
    module = make(selection)
    module.values.data.add_(1)
    sft.sync(module)
    assert shows(module)
    vector_to_parameters(parameters_to_vector([module.values]) + 1, [module.values])
    sft.sync(module)
    assert shows(module)


def test_state_dict_and_loading(selection):
    module = make(selection)
    with torch.no_grad():
        module.values.add_(1)
    state = module.state_dict()
    assert set(state) == {"weight", "bias", "values"}
    assert torch.equal(
        state["weight"], selection.scatter_(state["weight"].clone(), state["values"])
    )

    threes = selection.gather(torch.full((7, 10), 3.0))  # padding stays zero
    both = {
        "weight": selection.scatter_(torch.zeros(7, 10), threes),
        "bias": torch.zeros(7),
        "values": threes,
    }
    module.load_state_dict(both)
    assert torch.equal(module.values, threes)
    assert shows(module)

    weight = torch.randn(7, 10)
    missing = module.load_state_dict({"weight": weight, "bias": torch.zeros(7)})
    assert not missing.missing_keys
    assert torch.equal(module.values, selection.gather(weight))
    assert torch.equal(module.weight, weight)

    module.load_state_dict({k: v.clone() for k, v in state.items()}, assign=True)
    assert torch.equal(module.values, state["values"])
    assert shows(module)


def test_load_of_a_wrong_shape_is_an_error(selection):
    module = make(selection)
    state = module.state_dict()
    state["values"] = torch.zeros(99)
    with pytest.raises(RuntimeError, match="values"):
        module.load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_stay_fp32_over_a_16_bit_weight(selection, dtype):
    module = make(selection).to(dtype)
    assert module.weight.dtype == module.bias.dtype == dtype
    assert module.values.dtype == torch.float32
    backward(module, dtype)
    assert module.values.grad.dtype == torch.float32
    assert module.weight.grad is None
    made = make(selection, dtype)
    assert made.values.dtype == torch.float32
    optimizer = sft.SelectiveAdamW([made.values], lr=1e-5)
    start = made.values.detach().clone()
    for _ in range(20):
        made.values.grad = torch.ones_like(made.values)
        optimizer.step()
    assert ((made.values < start) | (start == 0)).all(), (
        "steps far below 16-bit resolution add up in the master"
    )
    assert shows(made)


def test_double_and_back(selection):
    module = make(selection).double()
    assert module.values.dtype == module.weight.dtype == torch.float64
    assert module.float().values.dtype == torch.float32
    assert module.half().values.dtype == torch.float32


def test_a_load_that_fails_keeps_what_was_trained(selection):
    module = make(selection)
    backward(module)
    torch.optim.SGD([module.values], lr=0.1, fused=True).step()
    trained = module.values.detach().clone()
    with pytest.raises(RuntimeError, match="size mismatch"):
        module.load_state_dict({"weight": torch.zeros(2, 2), "bias": torch.zeros(7)})
    assert torch.equal(module.values, trained)


def test_a_weight_changed_behind_the_back_is_reported_and_put_right(selection):
    module = make(selection)
    with torch.no_grad():
        module._parameters["weight"].zero_()
    with pytest.warns(UserWarning, match="behind the module's back"):
        module(torch.randn(1, 10))
    assert shows(module)
    outside = ~selection.mask((7, 10))
    with torch.no_grad():
        module._parameters["weight"][outside] = 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(torch.randn(1, 10))


def test_refusals():
    linear = nn.Linear(10, 7)
    with pytest.raises(IndexError, match=r"index: row 7 is out of range.*\(7, 10\)"):
        sft.nn.SelectiveLinear.from_linear(linear, sft.Rows([7]))
    with pytest.raises(TypeError, match="linear: expected an nn.Linear, got Conv2d"):
        sft.nn.SelectiveLinear.from_linear(nn.Conv2d(1, 1, 1), sft.Rows([0]))
    with pytest.raises(ValueError, match="meta device"):
        sft.nn.SelectiveLinear.from_linear(nn.Linear(10, 7, device="meta"), sft.Rows([0]))
    with torch.inference_mode():
        made_there = nn.Linear(10, 7)
    with pytest.raises(ValueError, match="inference_mode"):
        sft.nn.SelectiveLinear.from_linear(made_there, sft.Rows([0]))
    strided = nn.Linear(7, 10)
    strided.weight = nn.Parameter(strided.weight.detach().T)
    with pytest.raises(ValueError, match=r"contiguous.*strides \(1, 7\)"):
        sft.nn.SelectiveLinear.from_linear(strided, sft.Rows([0]))
    assert type(strided) is nn.Linear and strided.weight.requires_grad


def test_data_parallel_is_refused_by_name():
    module = make(SELECTIONS["rows"])
    with pytest.raises(RuntimeError, match="Linear.weight.*DataParallel"):
        module._replicate_for_data_parallel()


def test_an_optimiser_made_before_the_conversion_is_reported():
    model = nn.Sequential(nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sft.convert(model, {"0.weight": sft.Rows([1])})
    model(torch.randn(2, 4)).sum().backward()
    with pytest.warns(
        UserWarning, match="0.weight: this optimiser holds the weight but not the values"
    ):
        optimizer.step()
    model.zero_grad()
    model(torch.randn(2, 4)).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.optim.SGD(model.parameters(), lr=0.1).step()


def test_a_reverted_model_is_no_optimisers_business():
    model = nn.Sequential(nn.Linear(4, 4))
    sft.convert(model, {"0.weight": sft.Rows([1])})
    sft.revert(model)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


@pytest.mark.parametrize("kind", ["rows", "entries", "columns"])
def test_an_index_edited_between_forwards_is_refused(kind):
    module = make(copy.deepcopy(SELECTIONS[kind]))
    module(torch.randn(2, 10))
    module.selection.index.add_(10**6)
    with pytest.raises(ValueError, match="index: it was changed in place"):
        module(torch.randn(2, 10))


def test_a_selection_made_under_inference_mode_serves():
    with torch.inference_mode():
        selection = sft.Entries([1, 5])
    module = make(selection)
    backward(module)
    sft.SelectiveAdamW([module.values], lr=0.1).step()
    assert shows(module)
