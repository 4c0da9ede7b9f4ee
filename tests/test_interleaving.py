"""Forwards and backwards in any order.

Several graphs, recompute, accumulation, and what raises as in nn.Linear.
"""

import copy

import pytest
import torch
from helpers import llama
from torch import nn
from torch.utils.checkpoint import checkpoint

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")

OPTIMIZERS = {
    "SelectiveAdamW": lambda ps: sft.SelectiveAdamW(ps, 1e-2),
    "AdamW": lambda ps: torch.optim.AdamW(ps, 1e-2),
    "AdamW fused": lambda ps: torch.optim.AdamW(ps, 1e-2, fused=True),
    "SGD": lambda ps: torch.optim.SGD(ps, 1e-2),
}


class Net(nn.Module):
    """Linear layers of every structure, a row-sparse embedding, an aliased norm and an aliased
    attention.
    """

    PLAN = {
        "embed.weight": sft.Rows([0, 2, 5]),
        "first.weight": sft.Columns([1, 3]),
        "attention.in_proj_weight": sft.Rows([0, 9, 20]),
        "attention.out_proj.weight": sft.Entries([3, 17]),
        "norm.weight": sft.Entries([0, 7]),
        "second.weight": sft.Blocks([[0, 1], [1, 2]], (5, 3)),
        "third.weight": sft.Entries([0, 11, 30]),
    }

    def __init__(self, checkpointed=None):
        super().__init__()
        self.embed = nn.Embedding(6, 8)
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.checkpointed = checkpointed  # None, or use_reentrant

    def forward(self, tokens):
        x = self.embed(tokens)
        x = (
            x
            if self.checkpointed is None
            else checkpoint(self.body, x, use_reentrant=self.checkpointed)
        )
        return self.body(x) if self.checkpointed is None else x

    def body(self, x):
        x = torch.tanh(self.first(x))
        x = self.norm(x + self.attention(x, x, x)[0])
        return self.third(torch.tanh(self.second(x)))


def net(checkpointed=None):
    """A dense net in fp64, and the same net converted."""
    torch.manual_seed(0)
    dense = Net(checkpointed).double()
    selective = copy.deepcopy(dense)
    sft.convert(selective, Net.PLAN)
    return dense, selective


def tokens(seed):
    return torch.randint(6, (3, 4), generator=torch.Generator().manual_seed(seed))


def loss_of(model, seed):
    return model(tokens(seed)).square().mean()


def values_of(model):
    """{name in the plan: values}."""
    found = {}
    for name in Net.PLAN:
        path, _, attribute = name.rpartition(".")
        owner = model.get_submodule(path)
        found[name] = getattr(owner, f"{attribute}_selected", owner).values
    return found


def assert_gradients_match(dense, selective):
    for name, values in values_of(selective).items():
        weight = dense.get_parameter(name)
        want = Net.PLAN[name].gather(weight.grad.view(sft.matrix_shape(dense, name)))
        torch.testing.assert_close(
            values.grad, want, rtol=0, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("checkpointed", [None, True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_graphs_alive_after_a_step(optimizer, checkpointed):
    """1F1B: the forwards that follow a step write the weights once, and no backward of theirs finds
    them changed.
    """
    dense, selective = net(checkpointed)
    step = OPTIMIZERS[optimizer](selective.parameters())
    for _ in range(2):
        step.zero_grad()
        loss_of(selective, 0).backward()
        step.step()
    dense.load_state_dict(sft.revert(copy.deepcopy(selective)).state_dict())
    step.zero_grad()
    for model in (dense, selective):
        first, second = loss_of(model, 1), loss_of(model, 2)
        first.backward()
        third = loss_of(model, 3)
        third.backward()
        second.backward()
    assert_gradients_match(dense, selective)


@pytest.mark.parametrize("checkpointed", [None, True, False])
def test_accumulated_micro_batches_make_the_gradient_of_their_sum(checkpointed):
    dense, selective = net(checkpointed)
    for seed in range(4):
        loss_of(selective, seed).backward()
    sum(loss_of(dense, seed) for seed in range(4)).backward()
    assert_gradients_match(dense, selective)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_nothing(reentrant):
    plain, checkpointed = net()[1], net(reentrant)[1]
    for model in (plain, checkpointed):
        optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2)
        for seed in range(5):
            optimizer.zero_grad()
            loss_of(model, seed).backward()
            optimizer.step()
    for name, values in values_of(plain).items():
        assert torch.equal(values, values_of(checkpointed)[name]), name


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_of_transformers(reentrant):
    """`gradient_checkpointing_enable` around decoder layers whose linear layers and norms have
    selections.
    """
    plan = llama.plan_of("mixed") | {"model.layers.0.input_layernorm.weight": sft.Entries([1, 5])}
    weights = []
    for enabled in (False, True):
        model = llama.tiny_llama()
        sft.convert(model, plan)
        if enabled:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.train()
        llama.train(model, torch.optim.AdamW(model.parameters(), 1e-2, fused=True), 5)
        weights.append(llama.weights_of(model, plan))
    assert llama.furthest(*weights) == 0


KINDS = [sft.Rows([1]), sft.Columns([1]), sft.Blocks([[0, 0]], 2), sft.Entries([1])]


@pytest.mark.parametrize("kind", KINDS, ids=lambda s: s.kind)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_between_a_forward_and_its_backward_raises_as_in_linear(optimizer, kind):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    sft.convert(model, {"0.weight": kind, "1.weight": kind})
    step = OPTIMIZERS[optimizer](model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    loss = model(torch.ones(2, 4)).sum()
    step.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_step_between_a_forward_and_its_backward_raises_under_an_alias():
    model = nn.Sequential(nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1))
    sft.convert(model, {"0.weight": sft.Rows([1]), "1.weight": sft.Rows([1])})
    for make in OPTIMIZERS.values():
        step = make(model.parameters())
        model(torch.ones(2, 4, 3)).sum().backward()
        loss = model(torch.ones(2, 4, 3)).sum()
        step.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_forwards_without_a_step_never_touch_a_weight():
    _, selective = net()
    optimizer = torch.optim.AdamW(selective.parameters(), 1e-2, fused=True)
    loss_of(selective, 0).backward()
    optimizer.step()
    loss_of(selective, 0)
    versions = {
        name: selective.get_parameter(name)._version for name in Net.PLAN if "embed" not in name
    }
    for seed in range(3):
        loss_of(selective, seed).backward()
    with torch.no_grad():
        loss_of(selective, 3)
    assert versions == {name: selective.get_parameter(name)._version for name in versions}
