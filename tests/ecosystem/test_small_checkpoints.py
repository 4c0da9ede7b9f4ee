"""Checkpoints as small as the run: transformers' Trainer and Lightning go on from them bit for bit,
also after SIGKILL; save_pretrained writes plain weights.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import llama, small_runs
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaForCausalLM

import sparse_ft as sft
from sparse_ft.trainers import SparseCallback

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
STEPS, SAVED = 6, 3


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(got, want):
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("structure", ["mixed", "columns", "entries"])
@pytest.mark.parametrize("optimizer", [None, sft.SelectiveAdamW], ids=["default", "ours"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_trainer_goes_on_bit_for_bit(structure, optimizer, dtype, tmp_path):
    whole = small_runs.converted(structure, dtype)
    small_runs.trainer(whole, tmp_path / "whole", STEPS, optimizer).train()
    first = small_runs.converted(structure, dtype)
    run = small_runs.trainer(first, tmp_path / "run", STEPS, optimizer, save_steps=SAVED)
    run.train()
    checkpoint = tmp_path / "run" / f"checkpoint-{SAVED}"
    plan = sft.load_delta(checkpoint).plan
    second = llama.tiny_llama(dtype)
    sft.convert(second, plan)
    again = small_runs.trainer(second, tmp_path / "again", STEPS, optimizer)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert_equal(state_of(second), state_of(whole))
    assert_equal(state_of(first), state_of(whole))


def test_a_checkpoint_holds_what_trains_alone(tmp_path):
    model = small_runs.converted("entries", torch.bfloat16)
    small_runs.trainer(model, tmp_path, SAVED, save_steps=SAVED).train()
    saved = load_file(tmp_path / f"checkpoint-{SAVED}" / "model.safetensors")
    assert set(saved) == {n for n, p in model.named_parameters() if p.requires_grad} | {
        "sparse_ft_trained"
    }


def bytes_in(folder):
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.parametrize("structure", ["columns", "entries"])
def test_a_checkpoint_at_1_percent_is_at_most_8_percent_of_the_model(structure, tmp_path):
    """Every weight of the model is a linear layer here, of which 1 % trains."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(1500, 1500, bias=False) for _ in range(3))).bfloat16()
    size = sum(p.numel() * p.element_size() for p in net.parameters())
    plan = sft.select(net, density=0.01, structure=structure, score="random", targets="*")
    sft.convert(net, plan)
    small_runs.regression(net, tmp_path, steps=2, save_steps=2).train()
    share = bytes_in(tmp_path / "checkpoint-2") / size
    assert 0.05 < share <= 0.08, f"{share:.4f}"


def test_a_plain_module_goes_on_too(tmp_path):
    def build():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        sft.convert(net, {"0.weight": sft.Rows([1, 3]), "2.weight": "all"})
        return net

    whole, first, second = build(), build(), build()
    small_runs.regression(whole, tmp_path / "whole", STEPS).train()
    small_runs.regression(first, tmp_path / "run", STEPS, save_steps=SAVED).train()
    saved = load_file(tmp_path / "run" / f"checkpoint-{SAVED}" / "model.safetensors")
    assert "0.weight" not in saved and "1.running_mean" in saved and "2.weight" in saved
    run = small_runs.regression(second, tmp_path / "again", STEPS)
    run.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{SAVED}"))
    assert_equal(state_of(second), state_of(whole))


AFTER = "5", "23"  # steps


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of runs that were killed so many steps after their first checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, small_runs.__file__, folder, *AFTER],
        cwd=Path(small_runs.__file__).parents[1], capture_output=True, text=True, timeout=540,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def not_killed(tmp_path_factory):
    """The weights that the same run ends with."""
    whole = small_runs.converted("columns", torch.bfloat16)
    small_runs.trainer(whole, tmp_path_factory.mktemp("whole"), small_runs.LONG).train()
    return state_of(whole)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("after", AFTER)
def test_killed_and_resumed_it_ends_with_the_same_weights(after, killed, not_killed, tmp_path):
    """SIGKILL some steps after the first checkpoint: resume from the last one that is whole."""
    folder = killed / after
    last = small_runs.finished_checkpoints(folder)[-1]
    second = small_runs.converted("columns", torch.bfloat16)
    run = small_runs.trainer(second, tmp_path / "again", small_runs.LONG)
    run.train(resume_from_checkpoint=str(last))
    assert run.state.global_step == small_runs.LONG
    assert_equal(state_of(second), not_killed)


@pytest.mark.parametrize("dropped", ["keep", "restore"])
def test_after_a_reselection_it_goes_on_bit_for_bit(dropped, tmp_path):
    def begun():
        model = llama.tiny_llama(torch.bfloat16)
        sft.convert(model, llama.plan_of("entries", 0.3), origin=True)
        optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
        for tokens in llama.batches(2):
            llama.loss_of(model, tokens).backward()
            optimizer.step()
            optimizer.zero_grad()
        sft.reselect(model, optimizer, llama.plan_of("entries", 0.2), dropped=dropped)
        return model

    whole, first = begun(), begun()
    small_runs.trainer(whole, tmp_path / "whole", STEPS).train()
    run = small_runs.trainer(first, tmp_path / "run", STEPS, save_steps=SAVED)
    checkpoint = tmp_path / "run" / f"checkpoint-{SAVED}"
    if dropped == "keep":
        with pytest.warns(UserWarning, match="left trained entries in weights"):
            run.train()
        plan = sft.Plan.load(checkpoint / "plan.safetensors")
    else:
        run.train()
        plan = sft.load_delta(checkpoint).plan
    second = llama.tiny_llama(torch.bfloat16)
    sft.convert(second, plan, origin=True)
    again = small_runs.trainer(second, tmp_path / "again", STEPS)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert_equal(state_of(second), state_of(whole))


def test_what_it_does_not_belong_to_is_refused_by_name(tmp_path):
    model = small_runs.converted("columns")
    small_runs.trainer(model, tmp_path, SAVED, save_steps=SAVED).train()
    checkpoint = str(tmp_path / f"checkpoint-{SAVED}")

    def resume(other):
        small_runs.trainer(other, tmp_path / "other", STEPS).train(
            resume_from_checkpoint=checkpoint
        )

    before = small_runs.converted("rows")
    kept = state_of(before)
    with pytest.raises(RuntimeError, match=r"another selection of 'model.layers.0.*load_delta"):
        resume(before)
    assert_equal(state_of(before), kept)
    other = llama.tiny_llama(seed=5)
    sft.convert(other, llama.plan_of("columns"))
    with pytest.raises(RuntimeError, match="another base: its numbers differ in 'model"):
        resume(other)


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path):
    model = small_runs.converted("columns")
    run = small_runs.trainer(
        model, tmp_path, 4, save_steps=1, eval_strategy="steps", eval_steps=1,
        load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=True,
    )  # fmt: skip
    run.train()
    assert run.state.best_global_step == 1
    first = small_runs.converted("columns")
    small_runs.trainer(first, tmp_path / "first", 1).train()
    assert_equal(state_of(model), state_of(first))


def test_clipping_with_steps_in_the_backward_is_refused(tmp_path):
    model = small_runs.converted("columns")
    make = small_runs.in_backward
    with pytest.raises(ValueError, match="max_grad_norm: 1.0 clips nothing.*max_grad_norm=0"):
        small_runs.trainer(model, tmp_path, 1, make, max_grad_norm=1.0).train()
    small_runs.trainer(model, tmp_path, 1, make, max_grad_norm=0).train()


def test_a_model_that_is_not_converted_is_named(tmp_path):
    with pytest.warns(UserWarning, match="SparseCallback: the model is not converted"):
        small_runs.trainer(llama.tiny_llama(), tmp_path, 1).train()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("given", [False, True])
def test_save_pretrained_while_converted_writes_plain_weights(given, dtype, tmp_path):
    model = small_runs.converted("mixed", dtype)
    small_runs.trainer(model, tmp_path / "run", 2).train()
    more = {"state_dict": model.state_dict()} if given else {}
    if dtype == torch.bfloat16:
        with pytest.warns(UserWarning, match="save_pretrained: 10 weights .*SparseCallback"):
            model.save_pretrained(tmp_path / "saved", **more)
    else:
        model.save_pretrained(tmp_path / "saved", **more)
    keys = set(load_file(tmp_path / "saved" / "model.safetensors"))
    assert keys == set(llama.tiny_llama().state_dict())
    loaded, info = LlamaForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    want = sft.revert(model).state_dict()
    assert_equal(loaded.state_dict(), want)
    assert "save_pretrained" not in model.__dict__


def test_a_run_saves_the_whole_model_elsewhere(tmp_path):
    model = small_runs.converted("columns")
    run = small_runs.trainer(model, tmp_path / "run", 2, save_steps=1)
    run.train()
    run.save_model(str(tmp_path / "final"))
    assert set(load_file(tmp_path / "final" / "model.safetensors")) == set(
        llama.tiny_llama().state_dict()
    )
    shutil.rmtree(tmp_path / "run")


def test_the_callback_is_found_by_its_name():
    from sparse_ft import trainers
    from sparse_ft.trainers.hugging_face import SparseCallback as own

    assert trainers.SparseCallback is own is SparseCallback
    with pytest.raises(AttributeError, match="no attribute 'SpareCallback'"):
        trainers.SpareCallback
