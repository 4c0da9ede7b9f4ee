"""A step that is recorded trains as it does by itself: the same bits, whatever happens between two
calls; what a replay would not do is refused by name.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import recorded_on_cpu
from helpers.small_net import assert_same_bits, assert_weights_show_values, everything, net
from torch import nn

import sparse_ft as sft
from sparse_ft.capturing import Captured, runtime

Optimizer = torch.optim.Optimizer


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that has graphs."""
    monkeypatch.setattr(runtime, "runtime_of", recorded_on_cpu.Runtime)


def selective(model: nn.Module, **options: Any) -> Optimizer:
    return sft.SelectiveAdamW(model.parameters(), 1e-2, **options)


def momentum(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9)


def step_of(model: nn.Module, optimizer: Optimizer) -> Callable[[torch.Tensor], torch.Tensor]:
    def step(tokens: torch.Tensor) -> torch.Tensor:
        loss = model(tokens).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def tokens(seed: int, rows: int = 3) -> torch.Tensor:
    return torch.randint(6, (rows, 4), generator=torch.Generator().manual_seed(seed))


def pair(make: Callable[..., Optimizer], **options: Any) -> tuple[list, list, Captured]:
    """[models], [optimisers] and the second one's step, recorded."""
    models = [net(), net()]
    optimizers = [make(model, **options) for model in models]
    captured = sft.capture(step_of(models[1], optimizers[1]), models[1], optimizers[1])
    return models, optimizers, captured


@pytest.mark.parametrize(
    "make, options", [(selective, {}), (selective, {"in_backward": True}), (momentum, {})]
)
def test_every_structure_trains_from_a_graph_as_without(
    recorded: None, make: Callable[..., Optimizer], options: dict[str, Any]
) -> None:
    models, optimizers, captured = pair(make, **options)
    plain = step_of(models[0], optimizers[0])
    for seed in range(6):
        loss = plain(tokens(seed)).detach()
        assert torch.equal(captured(tokens(seed)), loss)
        if seed in (1, 3, 5):  # who looks between two calls sees what it has come to
            assert torch.equal(models[0](tokens(9)), models[1](tokens(9)))
    assert captured.recorded == 1
    assert_weights_show_values(models[1])
    assert_same_bits(*map(everything, models, optimizers))


def loaded(model: nn.Module, optimizer: Optimizer) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def written(model: nn.Module, optimizer: Optimizer) -> None:
    with torch.no_grad():
        model.first.values.mul_(0.5)


def reselected(model: nn.Module, optimizer: Optimizer) -> None:
    sft.reselect(model, optimizer, {"third.weight": sft.Entries([1, 11, 29])})


def moved(model: nn.Module, optimizer: Optimizer) -> None:
    model.second.bias.data = model.second.bias.data.clone()


@pytest.mark.parametrize("change", [loaded, written, reselected, moved])
def test_a_graph_follows_what_happens_between_two_calls(
    recorded: None, change: Callable[[nn.Module, Optimizer], None]
) -> None:
    models, optimizers, captured = pair(selective)
    plain = step_of(models[0], optimizers[0])
    for seed in range(8):
        if seed == 4:
            for model, optimizer in zip(models, optimizers):
                change(model, optimizer)
        plain(tokens(seed))
        captured(tokens(seed))
    assert captured.recorded == (1 if change is written else 2)
    assert_same_bits(*map(everything, models, optimizers))


def test_another_shape_has_a_graph_of_its_own(recorded: None) -> None:
    models, optimizers, captured = pair(selective)
    plain = step_of(models[0], optimizers[0])
    for rows in (3, 3, 3, 2, 3, 2, 2, 2, 3):
        assert torch.equal(plain(tokens(rows, rows)), captured(tokens(rows, rows)))
    assert captured.recorded == 2
    assert_same_bits(*map(everything, models, optimizers))


def test_gradients_that_a_step_leaves_are_those_of_its_call(recorded: None) -> None:
    models = [net(), net()]

    def step(tokens: torch.Tensor) -> None:
        models[1](tokens).square().mean().backward()

    captured = sft.capture(step, models[1], warm_up=1)
    optimizers = [selective(model) for model in models]
    for seed in range(5):
        models[0](tokens(seed)).square().mean().backward()
        captured(tokens(seed))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert captured.recorded == 1
    assert_same_bits(*map(everything, models, optimizers))


def test_gradients_that_would_add_up_are_refused(recorded: None) -> None:
    model = net()
    captured = sft.capture(lambda x: model(x).sum().backward(), model, warm_up=1)
    captured(tokens(0))
    before = model.first.values.grad.clone()
    with pytest.raises(ValueError, match="step: it adds to gradients"):
        captured(tokens(0))
    assert torch.equal(model.first.values.grad, before)


def test_a_number_that_has_changed_is_refused_by_name(recorded: None) -> None:
    models, optimizers, captured = pair(selective)
    for seed in range(3):
        captured(tokens(seed))
    before = everything(models[1], optimizers[1])
    optimizers[1].param_groups[0]["lr"] = 1e-3
    with pytest.raises(ValueError, match="lr: parameter group 0 has 0.001, .* holds the 0.01 "):
        captured(tokens(3))
    assert_same_bits(before, everything(models[1], optimizers[1]))


def test_a_scheduler_within_the_step_is_refused(recorded: None) -> None:
    model = net()
    optimizer = selective(model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    plain = step_of(model, optimizer)
    captured = sft.capture(lambda x: (plain(x), scheduler.step()), model, optimizer, warm_up=1)
    captured(tokens(0))
    with pytest.raises(ValueError, match="step: it changed the settings .* outside of it"):
        captured(tokens(1))


def test_a_step_that_waits_for_the_device_is_refused_and_undone(recorded: None) -> None:
    model = net()
    optimizer = selective(model)
    plain = step_of(model, optimizer)
    captured = sft.capture(lambda x: plain(x).item(), model, optimizer, warm_up=1)
    captured(tokens(0))
    before = everything(model, optimizer)
    with pytest.raises(RuntimeError, match=r"capture: the step cannot be recorded .*item\(\)"):
        captured(tokens(1))
    assert_same_bits(before, everything(model, optimizer))


def test_elsewhere_the_step_runs_as_it_is_and_says_so_once() -> None:
    models, optimizers, captured = pair(selective)
    plain = step_of(models[0], optimizers[0])
    with pytest.warns(UserWarning, match="capture: the model is on cpu") as warned:
        for seed in range(3):
            assert torch.equal(plain(tokens(seed)), captured(tokens(seed)))
    assert len(warned) == 1 and captured.recorded == 0
    assert_same_bits(*map(everything, models, optimizers))


class Batch:
    """Nearly a dict."""


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda model: sft.capture(print, model, warm_up=0), ValueError, "warm_up: .* got 0"),
        (
            lambda model: sft.capture(print, 3),
            TypeError,
            "model: expected one Module or several, got 3",
        ),
        (
            lambda model: sft.capture(print, model, 3),
            TypeError,
            "optimizer: expected one Optimizer or several, got 3",
        ),
        (lambda model: sft.capture(print, nn.Tanh()), ValueError, "model: it has no parameters"),
        (lambda model: sft.capture(print, model)(Batch()), TypeError, "capture: .* got a Batch"),
    ],
)
def test_what_is_no_step_is_refused_by_name(
    recorded: None, call: Callable[[nn.Module], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(net())
