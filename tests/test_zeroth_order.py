"""ZerothOrder against the rule written down on dense weights."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparse_ft as sft
from sparse_ft.zeroth_order import ZerothOrder

pytestmark = pytest.mark.usefixtures("made_on_device")

X, TARGET = torch.randn(16, 6, dtype=torch.float64), torch.randint(0, 3, (16,))


def small_net(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def small_entries(model, share=0.4):
    return sft.select(
        model, density=share, structure="entries", score="magnitude_bottom", scope="layer"
    )


def loss_of(model):
    return F.cross_entropy(model(X.to(model[0].weight.dtype)), TARGET)


class Dense:
    """MeZO on whole weights, with a mask: everything is a dense tensor, nothing is restored."""

    def __init__(self, model, plan, lr, epsilon, decay, small_only):
        self.model, self.lr, self.epsilon, self.decay = model, lr, epsilon, decay
        self.weights = {name: model.get_parameter(name) for name in plan}
        self.masks = {name: what.mask(self.weights[name].shape) for name, what in plan.items()}
        self.limits = {
            name: weight[self.masks[name]].abs().max() if small_only else float("inf")
            for name, weight in self.weights.items()
        }

    @torch.no_grad()
    def step(self, number, seed):
        noise = {}
        for place, (name, weight) in enumerate(self.weights.items()):
            mask = self.masks[name]
            mine = (seed * 1_000_003 + number) * 65_537 + place
            generator = torch.Generator(weight.device).manual_seed(mine)
            drawn = torch.randn(
                int(mask.sum()), generator=generator, dtype=weight.dtype, device=weight.device
            )
            noise[name] = torch.zeros_like(weight).masked_scatter(mask, drawn)
            noise[name] *= weight.abs() <= self.limits[name]
        losses = []
        for sign in (1, -1):
            moved = copy.deepcopy(self.model)
            for name, z in noise.items():
                moved.get_parameter(name).add_(sign * self.epsilon * z)
            losses.append(loss_of(moved))
        slope = (losses[0] - losses[1]) / (2 * self.epsilon)
        for name, z in noise.items():
            weight = self.weights[name]
            weight -= self.lr * (slope * z + self.decay * weight * self.masks[name])


@pytest.mark.parametrize("small_only", [False, True])
def test_thirty_steps_are_those_of_the_dense_rule(small_only):
    model, twin = small_net(), small_net()
    plan = small_entries(model)
    dense = Dense(twin, plan, 0.05, 1e-3, 0.1, small_only)
    sft.convert(model, plan)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = ZerothOrder(trained, 0.05, 1e-3, 0.1, small_only, seed=7)
    before = loss_of(model)
    for number in range(30):
        optimizer.step(lambda: loss_of(model))
        dense.step(number, 7)
    assert loss_of(model) < before
    if small_only:  # what has grown past its limit stays there
        moved = [(p.abs() > optimizer.state[p]["threshold"]).sum() for p in trained]
        assert sum(moved) > 0
    sft.revert(model)
    for name in plan:
        ours, theirs = model.get_parameter(name), twin.get_parameter(name)
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entries_are_restored_bit_for_bit(dtype):
    model = small_net(dtype)
    state = copy.deepcopy(model.state_dict())
    sft.convert(model, small_entries(model))
    optimizer = ZerothOrder([p for p in model.parameters() if p.requires_grad], lr=0.0, epsilon=0.1)
    seen = []

    def fails():
        loss = loss_of(model)
        seen.append(loss)
        if len(seen) in (4, 5):
            raise KeyboardInterrupt
        return loss

    optimizer.step(fails)
    assert seen[0] != seen[1]
    for _ in range(2):  # in the second pass, and in the first
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(fails)
        optimizer.param_groups[0]["step"] += 1
    sft.revert(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_nothing_is_kept_for_a_backward_and_the_others_never_move():
    model = small_net()
    plan = {"0.weight": sft.Rows([1, 4])}
    before = {name: p.clone() for name, p in model.named_parameters()}
    sft.convert(model, plan)
    optimizer = ZerothOrder([p for p in model.parameters() if p.requires_grad], lr=0.1)
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
    with hooks:
        for _ in range(5):
            assert not optimizer.step(lambda: loss_of(model)).requires_grad
    assert not saved
    sft.revert(model)
    for name, parameter in model.named_parameters():
        mask = torch.zeros_like(parameter, dtype=torch.bool)
        if name in plan:
            mask = plan[name].mask(parameter.shape)
        assert torch.equal(parameter[~mask], before[name][~mask])
        assert (parameter[mask] != before[name][mask]).all()


def test_both_passes_drop_the_same():
    model = nn.Sequential(nn.Linear(6, 8).double(), nn.Dropout(0.5), nn.Linear(8, 3).double())
    sft.convert(model, {"2.weight": sft.Entries([0])})
    kept = []
    model[1].register_forward_hook(lambda module, inputs, output: kept.append(output != 0))
    optimizer = ZerothOrder([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.step(lambda: F.cross_entropy(model(X), TARGET))
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[2], kept[3])
    assert not torch.equal(kept[0], kept[2])


def test_goes_on_from_a_state_dict():
    def run(steps, state=None):
        model = small_net()
        sft.convert(model, small_entries(model))
        optimizer = ZerothOrder(
            [p for p in model.parameters() if p.requires_grad], lr=0.1, small_only=True
        )
        if state is not None:
            model.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
        for _ in range(steps):
            optimizer.step(lambda: loss_of(model))
        return copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    whole, halves = run(6), run(3, run(3))
    for name, tensor in whole[0].items():
        assert torch.equal(tensor, halves[0][name]), name
    assert whole[1]["state"] == halves[1]["state"]


def test_a_loss_that_is_not_finite_changes_nothing():
    model = small_net()
    sft.convert(model, small_entries(model))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, before = ZerothOrder(trained, lr=0.1), [p.clone() for p in trained]
    assert optimizer.step(lambda: loss_of(model) * float("nan")).isnan()
    assert all(map(torch.equal, trained, before))
    optimizer.step(lambda: loss_of(model))
    assert not any(map(torch.equal, trained, before))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(lr=-1.0), "lr.*-1.0"),
        (dict(epsilon=0.0), "epsilon"),
        (dict(weight_decay=float("nan")), "weight_decay.*nan"),
    ],
)
def test_refusals(settings, says):
    with pytest.raises(ValueError, match=says):
        ZerothOrder(small_net().parameters(), **settings)


def test_a_closure_that_returns_a_scalar_is_needed():
    optimizer = ZerothOrder(small_net().parameters())
    with pytest.raises(ValueError, match="closure.*None"):
        optimizer.step(None)
    with pytest.raises(ValueError, match=r"closure.*\(2,\)"):
        optimizer.step(lambda: torch.ones(2))
