"""select(score="gradient") runs the model and leaves it as it was, whatever its forward, its hooks
or the user's Ctrl-C do.
"""

import copy
import gc
import itertools
import random

import numpy
import pytest
import torch
from helpers.interrupting import interrupted
from helpers.looks import assert_left_alone, looks
from torch import nn
from torch.utils.checkpoint import checkpoint

import sparse_ft as sft

BATCHES = 3


def batches():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(8, 4, generator=generator) for _ in range(BATCHES)]


def loss(model, batch):
    return model(batch).square().mean()


def choose(model, loss=loss, batches=batches, **keywords):
    return sft.select(
        model, density=0.5, score="gradient", batches=batches(), loss=loss, **keywords
    )


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 2))


class Replaces(nn.Module):
    """A forward that puts new tensors and objects where others were, writes to some, and
    adds more.
    """

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.register_buffer("replaced", torch.zeros(()))
        self.register_buffer("written", torch.zeros(3))
        self.register_buffer("moved", torch.zeros(3))
        self.register_buffer("missing", None)
        self.bare, self.longest, self.seen = torch.zeros(2), 0, []
        self.generator, self.dice = torch.Generator(), random.Random(0)

    def forward(self, input):
        self.replaced = self.replaced + 1
        self.written.add_(1)
        self.moved.data = self.moved + 1
        self.missing = torch.ones(2)
        self.register_buffer("added", torch.ones(1), persistent=False)
        self.register_parameter("extra", nn.Parameter(torch.ones(1)))
        self.child = nn.Identity()
        self.bare += 1
        self.longest += 1  # as a rotary embedding notes how far it has computed its angles
        self.seen.append(input)
        self.linear.bias.data = self.linear.bias.data + 1
        self.register_forward_hook(lambda *_: None)
        torch.rand(1, generator=self.generator), self.dice.random()
        random.random(), numpy.random.rand()
        return nn.functional.dropout(self.linear(input))


def test_a_forward_that_replaces_things():
    model = Replaces()
    generator, dice = model.generator.get_state(), model.dice.getstate()
    before = looks(model)
    choose(model)
    assert_left_alone(model, before)
    assert torch.equal(model.bare, torch.zeros(2))
    assert torch.equal(model.generator.get_state(), generator) and model.dice.getstate() == dice


def step_in_hooks(model):
    """torch's recipe: each parameter steps as soon as its gradient is there."""
    optimizers = {p: torch.optim.Adam([p], 0.1) for p in model.parameters()}

    def step(parameter):
        optimizers[parameter].step()
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    return optimizers.values()


STEPPING = {
    "in_backward=True": lambda model: [
        sft.SelectiveAdamW(model.parameters(), lr=0.1, in_backward=True)
    ],
    "hooks": step_in_hooks,
}


@pytest.mark.parametrize("how", STEPPING)
def test_optimisers_that_step_in_the_backward_do_not(how):
    model = build()
    wanted = choose(copy.deepcopy(model))
    optimizers = STEPPING[how](model)
    before = looks(model)
    assert choose(model) == wanted
    assert_left_alone(model, before)
    assert not any(optimizer.state for optimizer in optimizers)
    loss(model, batches()[0]).backward()
    assert before[0] != looks(model)[0]  # the hooks are there still


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), BaseException()], ids=repr)
@pytest.mark.parametrize("where", ["loss", "batches", "forward"])
def test_exceptions(error, where):
    model = build()
    model[2].eval()
    model[0].weight.requires_grad_(False)
    model[3].weight.grad = torch.ones(2, 4)
    before = looks(model)

    def fail_second(seen=[]):  # noqa: B006  (remembers)
        seen.append(1)
        if len(seen) % 2 == 0:
            raise error

    def failing_batches():
        for batch in batches():
            random.random()
            yield batch
            if where == "batches":
                raise error

    def failing_loss(model, batch):
        model.train()
        model[0].weight.grad = torch.zeros(4, 4)
        if where == "loss":
            fail_second()
        return loss(model, batch)

    handle = model[3].register_forward_hook(
        lambda *_: fail_second() if where == "forward" else None
    )
    before = looks(model)
    with pytest.raises(type(error)):
        choose(model, failing_loss, failing_batches)
    assert_left_alone(model, before)
    handle.remove()


def is_salience(file):
    return "salience" in file and "tests" not in file


def test_an_interrupt_at_any_line():
    model = nn.Sequential(Replaces())
    model[0].linear.weight.grad = torch.ones(2, 4)
    before = looks(model)
    for line in itertools.count(1, 3):
        act = lambda: choose(model, batches=lambda: batches()[:1])  # noqa: E731
        if not interrupted(act, line, is_salience):
            break
        assert_left_alone(model, before)
    assert line > 100


class Tied(nn.Module):
    """One weight in two modules, in a list and in an attribute of a module's own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.listed = [self.first.weight]
        object.__setattr__(self, "bare", self.first.weight)

    def forward(self, input):
        hidden = torch.tanh(self.second(torch.tanh(self.first(input))))
        return hidden @ self.listed[0] + hidden @ self.bare.T


def mean_gradient(model, name):
    for batch in batches():
        loss(model, batch).backward()
    return model.get_parameter(name).grad / BATCHES


MODELS = {
    "tied": (Tied, "first.weight"),
    "lstm": (lambda: _First(nn.LSTM(4, 4, 2)), "net.weight_hh_l0"),
    "attention": (lambda: _Attends(), "net.in_proj_weight"),
    "weight_norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        "parametrizations.weight.original1",
    ),
    "reentrant checkpoint": (lambda: _Checkpointed(), "net.0.weight"),
    "scripted": (lambda: nn.Sequential(torch.jit.script(nn.Linear(4, 4)), nn.ReLU()), "0.weight"),
    "parameter list": (lambda: _Listed(), "weights.0"),
}


class _First(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, input):
        return self.net(input)[0]


class _Attends(_First):
    def __init__(self):
        super().__init__(nn.MultiheadAttention(4, 2))

    def forward(self, input):
        return self.net(input, input, input)[0]


class _Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))

    def forward(self, input):
        return checkpoint(self.net, input.requires_grad_(), use_reentrant=True)


class _Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(4, 4), torch.randn(4, 4)])

    def forward(self, input):
        for weight in self.weights:
            input = torch.tanh(input @ weight)
        return input


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("kind", MODELS)
def test_the_gradient_is_that_of_the_parameter_itself(kind):
    """However modules come by it."""
    make, name = MODELS[kind]
    model = make()
    wanted = mean_gradient(model, name).abs()
    model.zero_grad()
    before = looks(model)
    plan = choose(model, structure="entries", targets=name)
    assert_left_alone(model, before)
    best = wanted.flatten().topk(len(plan[name])).indices.sort().values
    assert plan[name].index.tolist() == best.tolist()


def test_a_reference_that_the_loss_took_before_is_named():
    model = build()
    weight = model[0].weight
    before = looks(model)
    with pytest.raises(ValueError, match="targets: .*'0.weight' from somewhere else"):
        choose(model, lambda m, batch: loss(m, batch) + weight.square().sum())
    assert_left_alone(model, before)
    loss(model, batches()[0]).backward()  # nothing is left on it that would refuse
    assert weight.grad is not None


def test_an_embedding_that_bounds_its_rows():
    model = nn.Sequential(nn.Embedding(6, 4, max_norm=0.1), nn.Linear(4, 2))
    before = looks(model)
    rows = lambda: [torch.arange(6)] * 2  # noqa: E731
    plan = choose(model, batches=rows, targets="*.weight")
    assert_left_alone(model, before)
    assert {*plan} == {"0.weight", "1.weight"}


@pytest.mark.parametrize("which", [0, 3])
def test_a_parameter_that_is_written_to_is_named(which):
    model = build()
    model[3].weight.requires_grad_(False)

    def writes(model, batch):
        with torch.no_grad():
            model[which].weight.add_(1)
        return loss(model, batch)

    with pytest.raises(RuntimeError, match=f"loss: .*wrote to its parameter '{which}.weight'"):
        choose(model, writes, targets="0.weight")


def test_inference_mode_is_refused_by_name():
    model = build()
    with torch.inference_mode():
        with pytest.raises(
            RuntimeError, match=r"score: 'gradient' needs gradients.*inference_mode"
        ):
            choose(model)
        inside = build()
    with pytest.raises(ValueError, match="targets: '0.weight' was made under torch.inference_mode"):
        choose(inside)


def test_no_gradient_of_a_target_outlives_its_hook():
    """Memory that autograd makes beside activations: one layer's gradient at a time."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    seen = []

    def watching(model, batch):
        seen.append([(p.grad is None, p.requires_grad) for p in model.parameters()])
        return loss(model, batch)

    choose(model, watching, targets="*.weight")
    assert seen[0] == [(True, True), (True, False)] * 2  # biases need none
    assert seen[1] == seen[2] == seen[0]  # each is taken as soon as it is there


def test_nothing_of_a_choice_outlives_it():
    """A hook left on a weight kept every dense gradient of the choice as long as the model."""
    model = build()
    choose(model)
    assert all(not parameter._backward_hooks for parameter in model.parameters())
    before = tensors_alive()
    choose(model)
    choose(model)
    assert tensors_alive() == before


def tensors_alive() -> int:
    for _ in range(10):  # what other tests left may take more than one turn to go
        if not gc.collect():
            break
    return sum(type(thing) in (torch.Tensor, nn.Parameter) for thing in gc.get_objects())
