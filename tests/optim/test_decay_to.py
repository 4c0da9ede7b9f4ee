"""decay_to="origin": weight decay pulls the difference to the pretrained weights towards zero."""

import copy

import pytest
import torch
from helpers.small_net import PLAN, Net, assert_same_bits, everything, train
from torch import nn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")

SETTINGS = {"lr": 1e-2, "weight_decay": 0.3}


def net(origin=True, dtype=torch.float64):
    torch.manual_seed(0)
    model = Net().to(dtype)
    sft.convert(model, PLAN, origin=origin)
    return model


class Delta(nn.Module):
    """A linear layer whose masked difference to its weight trains, by torch alone."""

    def __init__(self, linear, mask):
        super().__init__()
        self.weight, self.mask = linear.weight.detach().clone(), mask
        self.delta = nn.Parameter(torch.zeros_like(self.weight))

    def forward(self, input):
        return input @ (self.weight + self.delta * self.mask).t()


def test_it_is_adamw_on_the_difference():
    torch.manual_seed(0)
    linear = nn.Linear(6, 5, bias=False).double()
    selection = sft.Entries(range(0, 30, 2))
    delta = Delta(linear, selection.mask((5, 6)).to(linear.weight.device))
    model = nn.Sequential(linear)
    sft.convert(model, {"0.weight": selection}, origin=True)
    ours = sft.SelectiveAdamW(model.parameters(), decay_to="origin", **SETTINGS)
    theirs = torch.optim.AdamW(delta.parameters(), **SETTINGS)
    for seed in range(50):
        torch.manual_seed(seed)
        x, target = torch.randn(4, 6).double(), torch.randn(4, 5).double()
        for module, optimizer in ((model, ours), (delta, theirs)):
            optimizer.zero_grad()
            (module(x) - target).square().mean().backward()
            optimizer.step()
    want = delta.weight + delta.delta * delta.mask
    torch.testing.assert_close(sft.revert(model)[0].weight, want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_trains_towards_it_in_every_structure(dtype):
    """Without gradients, what was moved away comes back, of whole parameters too."""
    model = net(dtype=dtype)
    optimizer = sft.SelectiveAdamW(model.parameters(), decay_to="origin", **SETTINGS)
    trained = [p for p in model.parameters() if p.requires_grad]
    origins = [sft.nn.origin_of(p).clone() for p in trained]
    with torch.no_grad():
        for p in trained:
            p.add_(1.0)
    before = [(p.detach() - o).abs().mean() for p, o in zip(trained, origins)]
    for _ in range(5):
        for p in trained:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    for module in model.modules():
        if isinstance(module, sft.nn.Selected):
            matrix = module._matrix()
            shown = module.selection.scatter_(matrix.clone(), module.values.detach())
            assert torch.equal(shown, matrix), module.label  # padding aside
    for p, origin, far in zip(trained, origins, before):
        assert (p.detach() - origin).abs().mean() < 0.999 * far
        assert torch.equal(sft.nn.origin_of(p), origin)


def test_groups_say_their_own_and_a_resumed_run_has_the_same_bits():
    def make(model):
        first = [p for p in model.first.parameters() if p.requires_grad]
        others = [
            p for p in model.parameters() if p.requires_grad and all(p is not q for q in first)
        ]
        groups = [{"params": first, "decay_to": "zero"}, {"params": others}]
        return sft.SelectiveAdamW(groups, decay_to="origin", **SETTINGS)

    model = net()
    optimizer = make(model)
    train(model, optimizer, 3)
    other = net()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    fresh = make(other)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 3, start=3)
    train(other, fresh, 3, start=3)
    assert_same_bits(everything(other, fresh), everything(model, optimizer))
    assert optimizer.param_groups[0]["decay_to"] == "zero"


def test_an_origin_that_nobody_kept_is_asked_for_by_name():
    model = net(origin=False)
    with pytest.raises(ValueError, match=r"decay_to: the origin of .* was not kept"):
        sft.SelectiveAdamW(model.parameters(), decay_to="origin")
    with pytest.raises(ValueError, match="decay_to: expected 'zero' or 'origin', got 'base'"):
        sft.SelectiveAdamW(model.parameters(), decay_to="base")
    optimizer = sft.SelectiveAdamW(model.parameters(), decay_to="origin", weight_decay=0.0)
    train(model, optimizer, 1)
    other, without = net(), net(origin=False)
    saved = sft.SelectiveAdamW(other.parameters(), decay_to="origin").state_dict()
    plain = sft.SelectiveAdamW(without.parameters())
    with pytest.raises(ValueError, match="decay_to: the origin of"):
        plain.load_state_dict(saved)
    assert "decay_to" not in plain.param_groups[0]


def test_without_the_option_a_state_dict_is_as_ever():
    assert "decay_to" not in sft.SelectiveAdamW(net().parameters()).state_dict()["param_groups"][0]
