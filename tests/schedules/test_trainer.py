"""Schedules under transformers' Trainer: the steps it takes are the steps they count."""

import pytest
import torch

import sparse_ft as sft

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from helpers import choosing_models  # noqa: E402


def examples(number=24):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 24, (number, 7), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


def trainer(model, folder, *schedules, **settings):
    arguments = transformers.TrainingArguments(
        folder,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        max_steps=6,
        **{"save_strategy": "no", **settings},
    )
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
    return transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=examples(),
        callbacks=[sft.ScheduleCallback(*schedules)],
        optimizers=(optimizer, None),
    )


def converted():
    model = choosing_models.case("Llama").model.float()
    plan = sft.select(model, density=0.1, structure="entries", score="random")
    sft.convert(model, plan)
    return model


def test_every_other_step(tmp_path):
    model = converted()
    asked = []

    def rule(model, amount):
        asked.append(amount)
        return sft.select(model, density=0.1, structure="entries", score="magnitude")

    trainer(model, tmp_path, sft.Every(2, rule, "linear", total=6)).train()
    assert asked == pytest.approx([2 / 3, 1 / 3, 0])


def test_rotation_goes_on_from_a_checkpoint(tmp_path):
    def rotate():
        return sft.Rotate(1, 2, order="ascending")

    schedule = rotate()
    model = choosing_models.case("Llama").model.float()
    settings = {"save_strategy": "steps", "save_steps": 3, "save_only_model": False}
    trainer(model, tmp_path, schedule, **settings).train()
    assert schedule.steps == 6 and schedule.active == ["model.layers.1"]
    again = rotate()
    model = choosing_models.case("Llama").model.float()
    resumed = trainer(model, tmp_path, again, **settings)
    seen = []
    turn = again._set
    again._set = lambda: (seen.append((again.steps, again.active)), turn())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert (3, ["model.layers.1"]) in seen and (4, ["model.layers.0"]) in seen
    assert again.steps == 6


def test_what_has_no_step_is_named():
    with pytest.raises(TypeError, match="schedules: expected objects with step"):
        sft.ScheduleCallback(3)
    with pytest.raises(AttributeError, match="no attribute 'ScheduleCallbacks'"):
        sft.ScheduleCallbacks  # noqa: B018
