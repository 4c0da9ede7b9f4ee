"""transformers around a converted model.

Its Trainer with the default optimiser, checkpoints, and save_pretrained.
"""

import pytest
import torch
from helpers import llama
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

import sparse_ft as sft


@pytest.fixture(params=["mixed", "columns"])
def converted(request):
    """(model, plan); "mixed" has every structure, embedding rows and an aliased norm."""
    plan, model = llama.plan_of(request.param), llama.tiny_llama()
    sft.convert(model, plan)
    return model, plan


def one_step(model, optimizer):
    llama.loss_of(model, next(llama.batches(1))).backward()
    optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: torch.optim.AdamW(ps, 1e-2, fused=True),
        lambda ps: torch.optim.SGD(ps, 1e-2, fused=True),
        lambda ps: torch.optim.AdamW(ps, 1e-2, foreach=True),
        lambda ps: sft.SelectiveAdamW(ps, 1e-2),
    ],
    ids=["AdamW fused", "SGD fused", "AdamW foreach", "SelectiveAdamW"],
)
def test_save_pretrained_right_after_a_step(converted, make, tmp_path):
    """No forward between the step and revert.

    What is saved holds the trained values all the same.
    """
    model, plan = converted
    born = llama.weights_of(model, plan)
    one_step(model, make(model.parameters()))
    values = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    sft.revert(model)
    assert not any(name.endswith("values") for name in model.state_dict())
    model.save_pretrained(tmp_path)
    loaded, info = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    for name, what in plan.items():
        weight = loaded.get_parameter(name).detach()
        path, _, attribute = name.rpartition(".")
        trained = values.get(f"{path}.values", values.get(f"{path}.{attribute}_selected.values"))
        matrix = weight.view(sft.matrix_shape(loaded, name))
        assert torch.equal(what.gather(matrix), trained), name
        assert not torch.equal(weight, born[name]), f"{name} did not move"
    llama.assert_unselected_untouched(loaded, plan, torch.float32)


def examples():
    """One batch of four walks: [LENGTH] tokens each."""
    return [{"input_ids": walk, "labels": walk} for walk in next(llama.batches(1))]


def trainer(model, folder, steps=5, **arguments):
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        weight_decay=0.1,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **{"save_strategy": "no", **arguments},
    )
    return Trainer(model, arguments, train_dataset=examples())


def test_trainer_with_its_default_optimizer(converted, tmp_path):
    model, plan = converted
    born = llama.weights_of(model, plan)
    run = trainer(model, tmp_path)
    run.train()
    assert run.args.optim == "adamw_torch_fused" and all(
        group["fused"] for group in run.optimizer.param_groups
    )
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert len(losses) == 5 and losses[-1] < 0.9 * losses[0]
    after = llama.weights_of(model, plan)
    for name in plan:
        assert not torch.equal(after[name], born[name]), f"{name} did not move"
    llama.assert_unselected_untouched(model, plan, torch.float32)


def test_trainer_resumes_from_its_checkpoint_bit_for_bit(converted, tmp_path):
    model, plan = converted
    trainer(model, tmp_path / "whole").train()
    first = llama.tiny_llama()
    sft.convert(first, plan)
    trainer(first, tmp_path / "parts", steps=3, save_strategy="steps", save_steps=3).train()
    second = llama.tiny_llama(seed=7)
    sft.convert(second, plan)
    trainer(second, tmp_path / "parts").train(
        resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3")
    )
    assert llama.furthest(llama.weights_of(model, plan), llama.weights_of(second, plan)) == 0
