"""Selected entries of parameters that a module reads in its own way.

The alias, its state_dict, its hooks.
"""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")


def conv(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, dtype=dtype), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5, dtype=dtype)
    )


PLAN = {
    "0.weight": sft.Entries([0, 13, 26, 100]),
    "3.bias": sft.Columns([1, 3]),
    "3.weight": sft.Rows([2]),
}


def train(model, optimizer, dtype=torch.float32):
    optimizer.zero_grad()
    model(torch.randn(2, 3, 6, 6, dtype=dtype)).square().mean().backward()
    optimizer.step()


def test_gradient_is_the_gathered_dense_one_and_the_class_stays():
    dense, model = conv(), conv()
    report = sft.convert(model, PLAN)
    assert report.transient == ["0.weight", "3.bias"] and report.replaced == ["3.weight"]
    assert type(model[0]) is nn.Conv2d
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(dense(x), model(x))
    assert "weight" not in model[0].__dict__, "the alias is gone after the forward"
    dense(x).square().sum().backward()
    model(x).square().sum().backward()
    values = model[0].weight_selected.values
    assert torch.equal(values.grad, PLAN["0.weight"].gather(dense[0].weight.grad.flatten(1)))
    assert torch.equal(
        model[3].bias_selected.values.grad, dense[3].bias.grad[[1, 3]][None].reshape(1, 2)
    )
    assert model[0].weight.grad is None


@pytest.mark.parametrize(
    "make",
    [lambda p: sft.SelectiveAdamW(p, lr=0.1), lambda p: torch.optim.AdamW(p, lr=0.1, fused=True)],
    ids=["ours", "fused"],
)
def test_the_weight_is_fresh_right_after_a_step(make):
    """Others than the reading module may read it (fast paths, tied code), and would not know to
    look.
    """
    model = conv()
    sft.convert(model, PLAN)
    optimizer = make([p for p in model.parameters() if p.requires_grad])
    before = model[0].weight.detach().clone()
    train(model, optimizer)
    values = model[0].weight_selected.values.detach()
    assert torch.equal(PLAN["0.weight"].gather(model[0].weight.detach().flatten(1)), values)
    moved = (model[0].weight != before).flatten().nonzero().squeeze(1).tolist()
    assert moved == [0, 13, 26, 100]


def test_state_dict_keys_stay_as_they_were():
    model = conv()
    keys = {k for k in model.state_dict()}
    sft.convert(model, {"0.weight": PLAN["0.weight"]})
    assert set(model.state_dict()) == keys
    state = {k: torch.randn_like(v) for k, v in model.state_dict().items()}
    assert not any(model.load_state_dict(state))
    assert torch.equal(model[0].weight, state["0.weight"])
    assert torch.equal(
        model[0].weight_selected.values, PLAN["0.weight"].gather(state["0.weight"].flatten(1))
    )


def test_a_16_bit_weight_keeps_its_fp32_values_in_the_state_dict():
    model, other = conv(torch.bfloat16), conv(torch.bfloat16)
    for m in (model, other):
        sft.convert(m, PLAN)
    train(model, sft.SelectiveAdamW(model.parameters(), lr=1e-3), torch.bfloat16)
    state = model.state_dict()
    assert "0.weight_selected.values" in state
    other.load_state_dict(state)
    assert torch.equal(other[0].weight_selected.values, model[0].weight_selected.values)
    assert model.half()[0].weight_selected.values.dtype == torch.float32
    original = {k: v for k, v in state.items() if "selected" not in k and "values" not in k}
    assert not any(other.load_state_dict(original))
    assert torch.equal(
        other[0].weight_selected.values,
        PLAN["0.weight"].gather(original["0.weight"].flatten(1)).float(),
    )


@pytest.mark.parametrize(
    "twin", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_train_on_their_own(twin):
    model = conv()
    sft.convert(model, PLAN)
    other = twin(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train(
        other,
        torch.optim.SGD([p for p in other.parameters() if p.requires_grad], lr=1.0, fused=True),
    )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    moved = (other[0].weight != before["0.weight"]).flatten().nonzero().squeeze(1).tolist()
    assert moved == [0, 13, 26, 100]
    sft.revert(other)
    assert [type(m) for m in other] == [nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear]
    assert not other[0]._forward_pre_hooks and not other[0]._modules


def test_a_forward_that_fails_takes_the_alias_away():
    model = conv()
    sft.convert(model, PLAN)
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 99, 6, 6))
    assert "weight" not in model[0].__dict__
    model(torch.randn(2, 3, 6, 6))


def test_recurrent_weights():
    torch.manual_seed(0)
    dense, model = (nn.LSTM(5, 6, batch_first=True) for _ in range(2))
    model.load_state_dict(dense.state_dict())
    plan = {"weight_hh_l0": sft.Rows([0, 9]), "weight_ih_l0": sft.Columns([4])}
    sft.convert(model, plan)
    x = torch.randn(2, 4, 5)
    assert torch.equal(dense(x)[0], model(x)[0])
    dense(x)[0].square().sum().backward()
    model(x)[0].square().sum().backward()
    assert torch.equal(model.weight_hh_l0_selected.values.grad, dense.weight_hh_l0.grad[[0, 9]])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    optimizer.step()
    with torch.no_grad():
        again = model(x)[0]
    sft.revert(model)
    with torch.no_grad():  # torch runs another kernel without gradients
        assert torch.equal(again, model(x)[0])
    assert all(a is b for a, b in zip(model._flat_weights, model.parameters()))


def test_a_parameter_that_nobody_reads_is_reported_by_name():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.unread = nn.Linear(3, 3), nn.Conv1d(3, 3, 1)

        def forward(self, x):
            return self.read(x)

    model = Reader()
    sft.convert(model, {"read.weight": sft.Rows([0]), "unread.weight": sft.Rows([1])})
    optimizer = sft.SelectiveAdamW(model.parameters())
    model(torch.randn(2, 3)).sum().backward()
    with pytest.warns(UserWarning, match="unread.weight: selected, but no gradient reached it"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        optimizer.step()


def test_a_parameter_list_is_read_by_its_parent():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ParameterList([nn.Parameter(torch.randn(3, 3))])

        def forward(self, x):
            return x @ self.weights[0]

    model = Reader()
    dense = copy.deepcopy(model)
    sft.convert(model, {"weights.0": sft.Rows([1])})
    x = torch.randn(2, 3)
    dense(x).sum().backward()
    model(x).sum().backward()
    values = [p for p in model.parameters() if p.requires_grad]
    assert len(values) == 1 and torch.equal(values[0].grad, dense.weights[0].grad[[1]])


def test_a_module_that_calls_itself_is_refused_by_name():
    """The inner call would take the outer one's alias away, and with it part of the gradient."""

    class Recursive(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Parameter(torch.randn(6, 6))

        def forward(self, x, depth=2):
            return torch.tanh((self(x, depth - 1) if depth else x) @ self.mix)

    model = nn.ModuleList([Recursive()])
    sft.convert(model, {"0.mix": sft.Rows([1])})
    with pytest.raises(RuntimeError, match="0.mix: its reader calls itself"):
        model[0](torch.randn(2, 6))
    with torch.no_grad():
        model[0](torch.randn(2, 6))
