"""Every public function that takes a model names what came in its place, and the way out."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparse_ft as sft
from sparse_ft.reparametrised import put


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))


def entered(manager: Any) -> None:
    with manager:
        pass


def calls(trained: nn.Module, folder: Path) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """(argument, call of one public function with it) where the argument is to be a module."""
    delta = sft.Delta.of(trained)
    file = folder / "delta.safetensors"
    rows = {"0.weight": sft.Rows([1])}
    yield "model", lambda it: sft.apply(it, delta)
    yield "model", sft.remove
    yield "base", lambda it: sft.diff(it, trained)
    yield "trained", lambda it: sft.diff(trained, it)
    yield "model", lambda it: entered(sft.disabled(it))
    yield "model", lambda it: sft.save_delta(it, file)
    yield "model", lambda it: sft.export_lora(it, folder)
    yield "model", lambda it: sft.export_shira(it, folder)
    yield "model", sft.patches
    yield "model", lambda it: sft.capture(print, it)
    yield "step", lambda it: sft.capture(it, trained)
    yield "model", lambda it: sft.load(it, {})
    yield "model", sft.state_dict
    yield "model", lambda it: sft.convert(it, rows)
    yield "model", sft.revert
    yield "model", sft.summary
    yield "model", sft.sync
    yield "model", sft.lean
    yield "model", sft.merge_quantised
    yield "model_or_config", lambda it: sft.estimate(it, None)
    yield "module", lambda it: sft.matrix_shape(it, "0.weight")
    yield "model", sft.memory.ledger
    yield "model", lambda it: sft.reselect(it, None, rows)
    yield "model", sft.restore
    yield "model", lambda it: sft.scale_updates(it, {})
    yield "model", lambda it: sft.select(it, density=0.1)
    yield "model", lambda it: sft.layer_scores.total(it, "magnitude")
    yield "model", lambda it: sft.units(it, torch.randn(2, 3))
    yield "model", lambda it: sft.recipes.get("shira")(it)
    yield "model", lambda it: put(it, {})
    yield "model", lambda it: sft.Candidates(it, 3)
    yield "model", lambda it: sft.Every(3, lambda model: {}).attach(it, None)
    yield "model", lambda it: sft.Rotate(1, 3, units="0.*").attach(it, None)


@pytest.mark.parametrize("given", [3, None, "my-model", "optimizer"])
def test_it_is_named(given: Any, tmp_path: Path):
    model = small_net()
    sft.convert(model, {"0.weight": sft.Rows([1])}, origin=True)
    if given == "optimizer":
        given = sft.SelectiveAdamW(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    for number, (argument, call) in enumerate(calls(model, tmp_path)):
        with pytest.raises(TypeError) as raised:
            call(given)
        assert str(raised.value).startswith(f"{argument}: expected"), (number, raised.value)
    assert not list(tmp_path.iterdir())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_way_out_is_told():
    with pytest.raises(TypeError, match="got 'my-model'; load it first, with from_pretrained"):
        sft.select("my-model", density=0.1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="make one of it"):
        sft.lean(nn.Linear)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the model comes before the optimizer"):
        optimizer = torch.optim.SGD(small_net().parameters(), lr=0.1)
        sft.reselect(optimizer, small_net(), {})  # type: ignore[arg-type]


def test_a_wrapper_of_a_converted_model_is_told_which_part_was_converted():
    wrapped = nn.ModuleDict({"student": small_net()})
    sft.convert(wrapped["student"], {"0.weight": sft.Rows([1])}, origin=True)
    acts: list[Callable[[nn.Module], Any]] = [
        sft.restore,
        sft.Delta.of,
        lambda model: sft.Candidates(model, 3),
    ]
    for act in acts:
        with pytest.raises(ValueError, match="its 'student' was, so call it on that module"):
            act(wrapped)


def test_settings_of_a_schedule_are_looked_at_when_it_is_made():
    def rule(model: nn.Module) -> dict:
        return {}

    with pytest.raises(TypeError, match="drop: no such setting; did you mean 'dropped'?"):
        sft.Every(100, rule, drop="keep")
    with pytest.raises(ValueError, match="dropped: expected 'keep' or 'restore', got 'kept'"):
        sft.Once(100, rule, dropped="kept")
    with pytest.raises(TypeError, match="seeds: expected a callable"):
        sft.Every(100, rule, seeds={})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="optimizer: expected an optimiser or None, got 0.1"):
        sft.Every(100, rule).attach(small_net(), 0.1)  # type: ignore[arg-type]
    for state in (None, [1], {"steps": -1}):
        with pytest.raises(ValueError, match="state: expected a number of steps"):
            sft.Every(100, rule).load_state_dict(state)  # type: ignore[arg-type]


def test_factors_that_are_none_are_named():
    model = small_net()
    sft.convert(model, {"0.weight": sft.Rows([1])})
    wrong = [
        (None, TypeError, "factors: expected a mapping .* got None"),
        (0.5, TypeError, "factors: expected a mapping .* got 0.5"),
        ({"0.weight": "fast"}, TypeError, "'0.weight': expected a number, .* got 'fast'"),
        ({"0.weight": [[1.0], [2.0, 3.0]]}, TypeError, "'0.weight': expected a number"),
        ({"0.weight": -1.0}, ValueError, "at least 0, got -1.0"),
        ({"0.weight": torch.ones(2, device="meta")}, ValueError, "data, got the meta device"),
        ({"0.weight": torch.ones(2, 2).to_sparse()}, ValueError, "data, got torch.sparse_coo"),
    ]
    for factors, error, message in wrong:
        with pytest.raises(error, match=message):
            sft.scale_updates(model, factors)


def test_weights_that_have_no_numbers_or_cannot_train_are_named():
    with torch.device("meta"):
        empty = small_net()
    with pytest.raises(ValueError, match="'magnitude' of '0.weight' is on the meta device"):
        sft.select(empty, density=0.1, score="magnitude")
    model = small_net()
    eighth = model[0].weight.detach().to(torch.float8_e4m3fn)
    model[0].weight = nn.Parameter(eighth, requires_grad=False)
    plan = sft.select(model, density=0.5, score="magnitude")
    assert plan.left["0.weight"] == "torch.float8_e4m3fn cannot train"
    for wrong in (0.5, sft.Contextual("half"), sft.Contextual(0.5, every=0)):
        with pytest.raises((TypeError, ValueError), match="contextual: expected"):
            sft.lean(small_net(), contextual=wrong)  # type: ignore[arg-type]
