"""The axolotl plugin, step by step as axolotl's manager calls it; axolotl is not installed."""

import importlib

import pytest
import torch
from helpers import llama

import sparse_ft as sft
from sparse_ft.trainers.axolotl import SparsePlugin

STEPS = [  # that a plugin of ours has; every other one is inherited where axolotl is
    "register", "get_input_args", "post_model_load", "add_callbacks_pre_trainer"
]  # fmt: skip


def registered(**options):
    plugin = SparsePlugin()
    plugin.register({"base_model": "tiny", "sparse_ft": options})
    return plugin


def test_it_converts_the_loaded_model_and_keeps_checkpoints_small(capsys):
    plugin, model = registered(density=0.3, structure="rows", score="magnitude"), llama.tiny_llama()
    plugin.post_model_load({}, model)
    plan = sft.select(llama.tiny_llama(), density=0.3, structure="rows", score="magnitude")
    assert sft.summary(model).trainable == sum(
        what.nnz(sft.matrix_shape(model, name)) for name, what in plan.items()
    )
    assert "SelectiveLinear" in capsys.readouterr().out
    (callback,) = plugin.add_callbacks_pre_trainer({}, model)
    assert type(callback).__name__ == "SparseCallback"


def test_a_plan_from_a_file(tmp_path):
    plan = llama.plan_of("columns")
    plan.save(tmp_path / "plan")
    model = llama.tiny_llama()
    registered(plan=str(tmp_path / "plan")).post_model_load({}, model)
    assert len(sft.summary(model).replaced) == len(plan)


@pytest.mark.filterwarnings("ignore")
def test_lora_of_the_config_trains_beside():
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(target_modules=["q_proj"], r=2)
    model = peft.get_peft_model(llama.tiny_llama(), lora)
    registered(density=0.3, score="magnitude").post_model_load({}, model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("lora_A" in name for name in trained)
    assert any(name.endswith(".values") for name in trained)
    llama.loss_of(model, next(llama.batches(1))).backward()
    assert all(torch.is_tensor(model.get_parameter(name).grad) for name in trained)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dense": 0.1}, "sparse_ft.dense: expected one of density, structure"),
        ({}, "sparse_ft: expected density"),
        ({"plan": "file", "density": 0.1}, "sparse_ft.plan: it says what trains"),
        ({"density": 0.1, "score": "gradient"}, "sparse_ft.score: 'gradient' needs batches"),
    ],
)
def test_what_the_config_may_not_say_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        registered(**options)


def test_the_config_may_hold_our_section():
    """axolotl makes its model of a config from all that plugins name, by their paths."""
    pytest.importorskip("pydantic")
    path, _, name = SparsePlugin().get_input_args().rpartition(".")
    model = getattr(importlib.import_module(path), name)
    assert model(sparse_ft={"density": 0.1}).sparse_ft == {"density": 0.1}
    assert all(callable(getattr(SparsePlugin, step)) for step in STEPS)
